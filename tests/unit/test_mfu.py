"""Model FLOP: counted in a copy that computes nothing; the peaks of devices."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from capsdist.config import get_preset, image_shape
from capsdist.models import CapsNet
from capsdist.models.capsule_network import Output
from capsdist.models.registry import CAPSNET
from capsdist.train.mfu import mfu_percent, model_flop, peak_flop_per_s


def loss(output: Output, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    assert output.reconstructions is not None
    return output.scores.sum(1) + output.reconstructions.flatten(1).sum(1)


def network(**options) -> CapsNet:
    return CapsNet(
        (1, 13, 11), 3, conv_channels=5, conv_kernel=3, primary_types=2, primary_dim=4, primary_kernel=3,
        class_dim=6, decoder_hidden=(7, 9), **options,
    )  # fmt: skip


def test_model_flop_is_that_of_textbook_routing_whatever_the_backend_computes_again() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(5, 1, 13, 11), torch.arange(5) % 3
    textbook = network(backend="reference", recompute="none")
    with FlopCounterMode(display=False) as counter:
        loss(textbook(images, labels), images, labels).sum().backward()
    counted = counter.get_total_flops() / len(images)
    for options in ({}, {"backend": "streamed"}, {"recompute": "iterations"}):
        other = network(**options)
        before = [parameter.detach().clone() for parameter in other.parameters()]
        assert model_flop(other, loss, images[:1], labels[:1]) == counted
        assert all(torch.equal(*pair) for pair in zip(before, other.parameters(), strict=True))
        assert all(parameter.grad is None for parameter in other.parameters())
    assert model_flop(network(iterations=1), loss, images, labels) < counted


def test_the_mnist_network_needs_1_2_gigaflop_an_image() -> None:
    """Which makes 120,000 images/s 15 % of an H100 in bf16."""
    flop = model_flop(CapsNet(), loss, torch.rand(1, 1, 28, 28), torch.zeros(1).long())
    assert flop == 1_202_257_920
    assert mfu_percent(flop, 120_000, 989.4e12) == pytest.approx(14.6, abs=0.05)


@pytest.mark.parametrize("preset", ["mnist_paper", "cifar10_official"])
def test_the_planner_counts_the_same_where_nothing_is_computed_again(preset: str) -> None:
    config = get_preset(preset)
    routing = config.routing.model_copy(update={"backend": "reference", "recompute": "none"})
    assert CAPSNET.cost is not None
    layers = CAPSNET.cost(config.model, routing).layers
    assert sum(layer.recomputed_flop for layer in layers) == 0
    with torch.device("meta"):
        built = CAPSNET.build(config.model, config.routing)
        images, labels = torch.empty(2, *image_shape(config.model)), torch.zeros(2, dtype=torch.int64)

    def total(output: Output, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return CAPSNET.losses(output, images, labels, config.loss)["loss"]

    flop = sum(layer.forward_flop + layer.backward_flop for layer in layers)
    assert model_flop(built, total, images, labels) == flop


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H200", "bf16", 989.4e12),
        ("NVIDIA H200 NVL", "bf16", 835.5e12),
        ("NVIDIA H100 PCIe", "fp16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-PCIE-40GB", "fp32", 156e12),
        ("Tesla T4", "bf16", None),
        ("cpu", "fp32", None),
    ],
)
def test_peaks(name: str, precision: str, peak: float | None) -> None:
    assert peak_flop_per_s(name, precision) == peak
