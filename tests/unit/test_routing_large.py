"""Many parents: the numbers are the reference's, and memory does not grow with children times parents."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from capsdist.bench.memory import peak_bytes
from capsdist.bench.routing import Case, forward_backward
from capsdist.routing import pack_weights, route_packed
from capsdist.routing.dynamic.cuts import plan_tiles

LIMIT_BYTES = 64e6
SHAPES = [
    pytest.param(Case(2, 70, num_parents=1000), id="imagenet-with-few-children"),
    pytest.param(Case(3, 9, num_parents=21_841), id="imagenet-21k"),
    pytest.param(Case(2, 5, num_parents=200_000, child_dim=2, parent_dim=4), id="parents"),
    pytest.param(Case(40, 300, num_parents=300, child_dim=2, parent_dim=3, iterations=10), id="iterations"),
    pytest.param(Case(2, 3, num_parents=3, child_dim=700, parent_dim=700), id="dimensions"),
]


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_many_parents_have_the_numbers_of_the_reference() -> None:
    case = Case(2, 70, num_parents=1000)
    assert plan_tiles(
        2, torch.Size([1000, 16, 8, 70]), rows=2, itemsize=4, poses_itemsize=4, device="cpu"
    ).parents < 1000  # fmt: skip
    found, expected = (forward_backward(case, backend)() for backend in ("streamed", "reference"))
    for one, other in zip(found, expected, strict=True):
        assert error(one, other) < 1e-4  # fp32


@pytest.mark.property("scratch")
@pytest.mark.parametrize("case", SHAPES)
def test_scratch_stays_below_64_mb(case: Case) -> None:
    kept = 4 * case.iterations * case.num_images * case.num_parents * case.parent_dim
    assert peak_bytes(forward_backward(case, "streamed")) - kept < LIMIT_BYTES


@pytest.mark.parametrize("num_threads", [1, 8])
def test_scratch_of_low_precision_and_priors_is_bounded_too(num_threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    poses = torch.randn(5, 120, 8, generator=generator).bfloat16().requires_grad_()
    weights = pack_weights(torch.randn(120, 900, 8, 16, generator=generator)).bfloat16().requires_grad_()
    priors = torch.randn(120, 900, generator=generator).bfloat16().requires_grad_()

    def run() -> tuple[Tensor, ...]:
        parent_poses = route_packed(poses, weights, log_priors=priors, none_of_the_above=True)
        return torch.autograd.grad(parent_poses.sum(), (poses, weights, priors))

    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        # The gradients of weights and priors are summed in fp32, whatever they are returned in.
        assert peak_bytes(run) - 4 * (weights.numel() + priors.numel()) < LIMIT_BYTES
    finally:
        torch.set_num_threads(threads)


@pytest.mark.defect("scratch", "memory of children times parents")
def test_the_reference_breaks_the_bound() -> None:
    assert peak_bytes(forward_backward(Case(20, 100, num_parents=300), "reference")) > LIMIT_BYTES


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.property("scratch")
@pytest.mark.slow  # half a minute on a quiet machine, and up to 8 GB
@pytest.mark.usefixtures("two_threads")
def test_a_layer_of_imagenet_size_stays_below_64_mb() -> None:
    """6,272 children of 1,000 classes: 3.2 GB of weights, as much for their gradient, votes of 0.8 GB."""
    generator = torch.Generator().manual_seed(0)
    poses = torch.randn(2, 8, 6272, generator=generator).mul_(0.3).transpose(1, 2).requires_grad_()
    # Each parent has other weights: the period of the repeated numbers, a prime, is longer than a parent's.
    numbers, size = torch.randn(1_000_003, generator=generator).mul_(0.1), 1000 * 16 * 8 * 6272
    packed = torch.empty(size)
    for start in range(0, size, len(numbers)):
        packed[start : start + len(numbers)] = numbers[: size - start]
    packed = packed.view(1000, 16, 8, 6272).requires_grad_()
    found: list[Tensor] = []

    def run() -> None:
        parent_poses = route_packed(poses, packed, backend="streamed")
        found.extend(
            (parent_poses.detach(), *torch.autograd.grad(parent_poses.square().sum(), (poses, packed)))
        )

    assert peak_bytes(run, warm=False) < LIMIT_BYTES  # what it found lives on, and does not count
    with torch.no_grad():
        expected = route_packed(poses[:1], packed, backend="reference")
    assert error(found[0][:1], expected) < 1e-4
    assert all(bool(tensor.norm().isfinite()) and bool(tensor.norm() > 0) for tensor in found)
