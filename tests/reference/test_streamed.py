"""The streamed backend has the reference's numbers: results, every gradient, odd sizes, however it is cut."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from capsdist.routing import pack_weights, route, route_reference
from capsdist.routing.dynamic import cuts as tiling
from routing_cases import Operands, largest_error, operands, rms_error, values_and_gradients

SIZES = [(1, 1, 1, 1, 1), (2, 5, 3, 4, 7), (19, 37, 5, 3, 6), (7, 33, 2, 9, 1)]  # B, I, J, D, E


streamed = partial(route, backend="streamed")


def error_of_streamed(given: Operands, iterations: int, **options: object) -> float:
    found = values_and_gradients(streamed, given, iterations, **options)
    return largest_error(found, values_and_gradients(route_reference, given, iterations, **options))


@pytest.mark.property("procedure-1")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("none", [False, True])
@pytest.mark.parametrize(("bias", "priors"), [(False, False), (True, False), (False, True), (True, True)])
def test_float64_agrees_to_1e10(
    sizes: tuple[int, int, int, int, int], iterations: int, none: bool, bias: bool, priors: bool
) -> None:
    given = operands(sizes, seed=sum(sizes) + iterations, bias=bias, priors=priors)
    assert error_of_streamed(given, iterations, none_of_the_above=none) < 1e-10


@pytest.mark.property("last")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("iterations", [1, 2, 4])
@pytest.mark.parametrize("none", [False, True])
@pytest.mark.parametrize("priors", [False, True])
def test_the_gradient_of_the_last_iteration_alone(
    sizes: tuple[int, int, int, int, int], iterations: int, none: bool, priors: bool
) -> None:
    given = operands(sizes, seed=sum(sizes) - iterations, bias=True, priors=priors)
    assert error_of_streamed(given, iterations, none_of_the_above=none, gradient="last") < 1e-10


# Bytes of a chunk and of a block, and which cuts are then made.
CUTS = [
    pytest.param(50_000, 1 << 20, "images", id="chunks"),
    pytest.param(10_000, 1 << 20, "images children", id="tiles"),
    pytest.param(3_000, 1 << 20, "images children parents", id="parents"),
    pytest.param(1, 1 << 20, "images children parents", id="single-numbers"),
    pytest.param(50_000, 20_000, "images block", id="blocks"),
    pytest.param(3_000, 1, "images children parents block", id="single-images"),
]


@pytest.mark.property("cuts", "how the work is cut changes no number")
@pytest.mark.parametrize(("chunk_bytes", "block_bytes", "cuts"), CUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("priors", [False, True])
def test_cuts_do_not_change_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
    chunk_bytes: int,
    block_bytes: int,
    cuts: str,
    dtype: torch.dtype,
    priors: bool,
) -> None:
    given = operands((11, 21, 7, 3, 6), seed=chunk_bytes + block_bytes, bias=True, priors=priors).to(dtype)
    whole = values_and_gradients(streamed, given, 3, none_of_the_above=True)
    monkeypatch.setattr(tiling, "chunk_bytes", lambda device: chunk_bytes)
    monkeypatch.setattr(tiling, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(tiling, "MIN_CHILDREN", 4)
    shape = pack_weights(given.weights).shape
    plan = tiling.plan_tiles(11, shape, rows=2, itemsize=8, poses_itemsize=8, device="cpu")
    sizes = {"images": 11, "children": 21, "parents": 7, "block": 11}
    assert {name for name, size in sizes.items() if getattr(plan, name) < size} >= set(cuts.split())
    cut = values_and_gradients(streamed, given, 3, none_of_the_above=True)
    # Another order of summation: in bf16 results may then round to the neighbouring number.
    assert largest_error(cut, whole) < (1e-10 if dtype == torch.float64 else 2**-7)


@pytest.mark.property("procedure-1")
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("none", [False, True])
@pytest.mark.parametrize("priors", [False, True])
def test_gradcheck(iterations: int, none: bool, priors: bool) -> None:
    given = operands((2, 4, 3, 2, 3), seed=iterations, bias=True, priors=priors)

    def run(*leaves: Tensor) -> Tensor:
        named = dict(zip(given.inputs, leaves, strict=True))
        return streamed(iterations=iterations, none_of_the_above=none, **named)

    assert torch.autograd.gradcheck(run, [leaf.clone().requires_grad_() for leaf in given.inputs.values()])


@pytest.mark.parametrize("wanted", [w for w in itertools.product([0, 1], repeat=4) if 0 < sum(w) < 4])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("chunk_bytes", [1 << 20, 1])
def test_any_subset_of_gradients(
    monkeypatch: pytest.MonkeyPatch, wanted: tuple[int, ...], iterations: int, chunk_bytes: int
) -> None:
    monkeypatch.setattr(tiling, "chunk_bytes", lambda device: chunk_bytes)
    given = operands((3, 5, 4, 3, 6), seed=iterations, bias=True, priors=True)
    expected = values_and_gradients(route_reference, given, iterations)
    leaves = {
        name: tensor.clone().requires_grad_(bool(want))
        for (name, tensor), want in zip(given.inputs.items(), wanted, strict=True)
    }
    streamed(iterations=iterations, **leaves).backward(given.grad)
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            torch.testing.assert_close(leaf.grad, expected[name], atol=1e-10, rtol=0)
        else:
            assert leaf.grad is None


@pytest.mark.property("rounding", "the error is at most twice that of plain torch in the same dtype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_error_is_at_most_twice_that_of_plain_torch(dtype: torch.dtype, seed: int) -> None:
    given = operands((6, 61, 5, 4, 9), seed=seed, bias=True, priors=True).to(dtype)
    truth = values_and_gradients(route_reference, given.to(torch.float64), 3)
    plain = values_and_gradients(route_reference, given, 3)
    found = values_and_gradients(streamed, given, 3)
    slack = torch.finfo(dtype).eps / 2
    for name, expected in truth.items():
        assert found[name].dtype == dtype
        assert rms_error(found[name], expected) <= 2 * rms_error(plain[name], expected) + slack, name


@pytest.mark.property("autocast", "autocast takes no precision away")
@pytest.mark.defect("autocast", "votes in bf16 under autocast")
@pytest.mark.parametrize("poses_dtype", [torch.float32, torch.bfloat16])  # the second: from a convolution
def test_autocast_takes_nothing_away(poses_dtype: torch.dtype) -> None:
    given = operands((4, 31, 5, 3, 8), seed=0).to(torch.float32)
    given = given.with_(child_poses=given.child_poses.to(poses_dtype))
    plain = values_and_gradients(streamed, given, 3)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = values_and_gradients(streamed, given, 3)
        mutant = values_and_gradients(route_reference, given, 3)  # plain torch, left to autocast
    assert largest_error(under_autocast, plain) == 0
    assert largest_error(mutant, plain) > 1e-3


def test_the_reference_backend_is_computed_in_fp32_under_autocast_too() -> None:
    given = operands((4, 31, 5, 3, 8), seed=1).to(torch.float32)
    plain = route(given.child_poses, given.weights, backend="reference")
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = route(given.child_poses, given.weights, backend="reference")
    assert torch.equal(under_autocast, plain)


def test_layouts_of_the_operands_do_not_matter() -> None:
    given = operands((5, 13, 4, 3, 6), seed=0)
    expected = values_and_gradients(streamed, given, 3)
    poses = given.child_poses.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    weights = given.weights.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_()
    parent_poses = streamed(poses, weights)
    grad = given.grad.transpose(0, 2).contiguous().transpose(0, 2)
    d_poses, d_weights = torch.autograd.grad(parent_poses, (poses, weights), grad)
    assert parent_poses.is_contiguous()
    found = {"parent_poses": parent_poses.detach(), "child_poses": d_poses, "weights": d_weights}
    assert largest_error(found, expected) < 1e-12


def test_gradient_of_a_sum_which_torch_passes_as_one_number() -> None:
    given = operands((3, 9, 4, 3, 5), seed=1)
    ones = given.with_(grad=torch.ones_like(given.grad))
    poses = given.child_poses.clone().requires_grad_()
    streamed(poses, given.weights).sum().backward()
    expected = values_and_gradients(route_reference, ones, 3)["child_poses"]
    torch.testing.assert_close(poses.grad, expected, atol=1e-12, rtol=0)
