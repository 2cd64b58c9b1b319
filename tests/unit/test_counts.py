"""Parameters, FLOP and bytes by formula are those of the networks that are built, and of the paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from capsdist.config import PRESETS, Model, Routing, get_preset
from capsdist.models import CapsNet, build_model
from capsdist.models.counts import (
    count_layers,
    forward_flop,
    num_parameters,
    output_bytes,
    training_state_bytes,
)

CIFAR = get_preset("cifar10_official").model

PUBLISHED = [
    (Model(decoder=False), 6_804_224),
    (Model(decoder=False, capsule_bias=True), 6_804_384),
    (Model(), 8_215_568),
    (Model(capsule_bias=True), 8_215_728),
    (Model(image_size=36, capsule_bias=True), 11_361_968),
    (Model(kind="baseline_cnn"), 35_445_522),
    (CIFAR, 22_476_448),
]

ODD = [
    Model(in_channels=3, image_size=21, conv_channels=5, conv_kernel=4, primary_types=3, primary_dim=5,
          primary_kernel=5, primary_stride=3, class_dim=7, num_classes=4, decoder_hidden=(6, 11)),
    Model(in_channels=2, image_size=13, conv_channels=3, primary_types=2, padding="same", capsule_bias=True,
          log_priors=True, num_classes=3, decoder=False),
    Model(kind="baseline_cnn", in_channels=2, image_size=9, num_classes=7),
]  # fmt: skip


def built(model: Model, routing: Routing | None = None) -> nn.Module:
    """The network on the meta device: shapes without memory."""
    with torch.device("meta"):
        return build_model(model, routing or Routing())


def size(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("model", "expected"), PUBLISHED)
def test_published_parameter_counts(model: Model, expected: int) -> None:
    assert num_parameters(model) == expected
    assert size(built(model)) == expected


@pytest.mark.parametrize("model", ODD)
def test_parameters_of_other_sizes(model: Model) -> None:
    assert num_parameters(model) == size(built(model))


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_every_preset(name: str) -> None:
    config = get_preset(name)
    assert num_parameters(config.model) == size(built(config.model, config.routing))


@pytest.mark.parametrize(
    ("model", "expected"), [(Model(), 1_152), (Model(image_size=36), 3_200), (CIFAR, 9_216)]
)
def test_number_of_primary_capsules(model: Model, expected: int) -> None:
    network = built(model)
    assert isinstance(network, CapsNet)
    assert network.class_capsules.num_children == expected


def in_place_product(total: list[int], left: list[int], right: list[int], **_: Any) -> int:
    """FLOP of `baddbmm_`, which routing uses and torch's counter does not know."""
    return 2 * math.prod(left) * right[-1]


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("model", ODD)
def test_flop_are_those_that_torch_counts(model: Model, iterations: int) -> None:
    routing = Routing(iterations=iterations)
    network = build_model(model, routing).eval()
    images = torch.rand(3, model.in_channels, model.image_size, model.image_size)
    with (
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: in_place_product}) as counter,
    ):
        network(images)
    assert counter.get_total_flops() == 3 * forward_flop(model, routing)


@pytest.mark.parametrize("model", ODD)
def test_output_shapes_are_those_of_the_layers(model: Model) -> None:
    network = build_model(model, Routing())
    shapes: list[int] = []

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        shapes.append(math.prod(output.shape[1:]))

    kinds = ("Conv2d", "Linear", "ClassCapsules")
    for module in network.modules():
        if type(module).__name__ in kinds:
            module.register_forward_hook(note)
    network(torch.rand(2, model.in_channels, model.image_size, model.image_size))
    layers = count_layers(model, Routing())
    assert [math.prod(layer.output_shape) for layer in layers] == shapes
    assert output_bytes(model) == 4 * sum(shapes)


def test_flop_of_the_mnist_network() -> None:
    by_name = {layer.name: layer.forward_flop for layer in count_layers(Model(), Routing())}
    assert by_name["class_capsules"] == 5 * 2 * 1152 * 8 * 10 * 16
    assert by_name["primary_capsules"] == 2 * 81 * 256 * 256 * 36


@pytest.mark.parametrize(("stage", "numbers"), [(0, 4.0), (1, 3.0), (2, 2.5), (3, 2.0)])
def test_zero_divides_the_training_state(stage: int, numbers: float) -> None:
    expected = numbers * 4 * num_parameters(Model())
    assert training_state_bytes(Model(), zero_stage=stage, num_ranks=2) == expected
    assert training_state_bytes(Model(), zero_stage=stage) == 16 * num_parameters(Model())
