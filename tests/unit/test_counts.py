"""Parameters and outputs are those of the networks that are built, of the paper, and of closed formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from capsdist.config import (
    BaselineCNNConfig,
    CapsNetConfig,
    Config,
    NetworkConfig,
    PoolingCNNConfig,
    get_preset,
)
from capsdist.models import CapsNet, build_model
from capsdist.models.counts import num_parameters, output_numbers

PUBLISHED = [
    (CapsNetConfig(decoder=False), 6_804_224),
    (CapsNetConfig(decoder=False, capsule_bias=True), 6_804_384),
    (CapsNetConfig(), 8_215_568),
    (CapsNetConfig(capsule_bias=True), 8_215_728),
]
OF_PRESETS = {
    "mnist_official": 8_215_728,
    "mnist_baseline": 35_445_522,
    "multimnist_official": 11_361_968,
    "multimnist_baseline": 24_563_978,
    "cifar10_official": 22_476_448,
}

ODD = [
    CapsNetConfig(
        in_channels=3, image_size=21, conv_channels=5, conv_kernel=4, primary_types=3, primary_dim=5,
        primary_kernel=5, primary_stride=3, class_dim=7, num_classes=4, decoder_hidden=(6, 11),
    ),
    CapsNetConfig(
        in_channels=2, image_size=13, conv_channels=3, primary_types=2, padding="same", capsule_bias=True,
        log_priors=True, num_classes=3, decoder=False,
    ),
    BaselineCNNConfig(in_channels=2, image_size=9, num_classes=7),
    PoolingCNNConfig(in_channels=2, image_size=11, num_classes=3, conv_channels=(5, 7), dense_units=6),
]  # fmt: skip


def by_formula(model: CapsNetConfig) -> int:
    """Parameters of a capsule network, added up layer by layer."""

    def side_after(side: int, kernel: int, stride: int) -> int:
        return -(-side // stride) if model.padding == "same" else (side - kernel) // stride + 1

    channels = model.primary_types * model.primary_dim
    conv = (model.in_channels * model.conv_kernel**2 + 1) * model.conv_channels
    primary = (model.conv_channels * model.primary_kernel**2 + 1) * channels
    side = side_after(
        side_after(model.image_size, model.conv_kernel, 1), model.primary_kernel, model.primary_stride
    )
    outputs, children = model.num_classes * model.class_dim, model.primary_types * side**2
    classes = children * model.primary_dim * outputs
    learned = outputs * model.capsule_bias + children * model.num_classes * model.log_priors
    units = (outputs, *model.decoder_hidden, model.in_channels * model.image_size**2)
    decoder = sum((before + 1) * after for before, after in pairwise(units)) if model.decoder else 0
    return conv + primary + classes + learned + decoder


@pytest.mark.parametrize(("model", "expected"), PUBLISHED)
def test_published_parameter_counts(model: NetworkConfig, expected: int) -> None:
    assert num_parameters(Config(model=model)) == expected


@pytest.mark.parametrize(("name", "expected"), OF_PRESETS.items())
def test_presets_have_the_parameters_that_are_published(name: str, expected: int) -> None:
    assert num_parameters(get_preset(name)) == expected


@pytest.mark.parametrize("rows", ["affnist", "smallnorb_azimuth", "smallnorb_elevation"])
def test_a_cnn_that_is_compared_has_as_many_parameters_as_the_capsnet(rows: str) -> None:
    """The paper on affNIST: "a similar number"."""
    ours, other = (num_parameters(get_preset(f"{rows}_{kind}")) for kind in ("baseline", "paper"))
    assert ours == pytest.approx(other, rel=0.01)


@pytest.mark.parametrize("model", [each for each in ODD if isinstance(each, CapsNetConfig)])
def test_parameters_of_other_sizes(model: CapsNetConfig) -> None:
    assert num_parameters(Config(model=model)) == by_formula(model)


# small ones: test_planning.py compares all presets, without building the large ones
@pytest.mark.parametrize("name", ["digits_quickstart", "mnist_baseline", "cifar10_resnet_capsnet_cpu"])
def test_parameters_of_a_preset_are_those_of_its_network(name: str) -> None:
    config = get_preset(name)
    network = build_model(config.model, config.routing)
    assert num_parameters(config) == sum(parameter.numel() for parameter in network.parameters())


CAPSULES = {
    "mnist_paper": 1_152, "multimnist_paper": 3_200, "affnist_paper": 4_608, "cifar10_official": 9_216,
    "smallnorb_paper": 2_048, "svhn_paper": 1_024,
}  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), CAPSULES.items())
def test_number_of_primary_capsules(name: str, expected: int) -> None:
    config = get_preset(name)
    with torch.device("meta"):
        network = build_model(config.model, config.routing)
    assert isinstance(network, CapsNet)
    assert network.class_capsules.num_children == expected


@pytest.mark.parametrize("model", ODD)
def test_output_numbers_are_those_of_the_layers(model: NetworkConfig) -> None:
    config = Config(model=model)
    network = build_model(model, config.routing).eval()
    shapes: list[int] = []

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        shapes.append(math.prod(output.shape[1:]))

    kinds = ("Conv2d", "Linear", "ClassCapsules")
    for module in network.modules():
        if type(module).__name__ in kinds:
            module.register_forward_hook(note)
    network(torch.rand(2, model.in_channels, model.image_size, model.image_size))
    assert output_numbers(config) == sum(shapes)
