"""`fused` has the reference's numbers: results and every gradient, odd sizes, the same each time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from fused_cases import DEVICE, error_of_fused, fused, operands

from capsdist.routing import pack_weights, route_reference
from capsdist.routing.dynamic.fused import launch_backward, launch_forward, plan
from capsdist.routing.dynamic.fused.call import Call
from capsdist.routing.dynamic.fused.launch_backward import route_backward
from capsdist.routing.dynamic.fused.launch_forward import route_forward
from routing_cases import Operands, rms_error, values_and_gradients

TOLERANCE = 5e-6 if DEVICE == "cpu" else 3e-5  # fp32; a GPU takes products as three TF32 products


@pytest.fixture(autouse=True)
def default_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """No searches: they would take longer than the tests."""
    monkeypatch.setenv("CAPSDIST_TUNE", "0")


@pytest.fixture(params=["all-parents-at-once", "few-parents-at-once"])
def parents_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to normalise over the parents: in registers, and by a pass over all of them before."""
    if request.param == "few-parents-at-once":
        monkeypatch.setattr(plan, "MAX_WHOLE", 0)
        monkeypatch.setattr(plan, "MANY_PARENTS", 2)
    return request.param


CASES = [  # B, I, J, D, E; R; bias, priors; none of the above
    pytest.param((1, 1, 1, 1, 1), 3, False, False, False, id="ones"),
    pytest.param((3, 9, 3, 3, 5), 1, False, False, False, id="one-iteration"),
    pytest.param((2, 5, 3, 2, 3), 1, True, True, True, id="one-iteration-with-everything"),
    pytest.param((2, 67, 2, 1, 3), 2, True, False, False, id="several-tiles-of-children"),
    pytest.param((17, 9, 3, 6, 4), 3, True, True, True, id="two-tiles-along-each-axis-with-everything"),
    pytest.param((2, 5, 3, 17, 18), 2, False, False, True, id="wide-capsules"),
    pytest.param((2, 9, 2, 5, 4), 4, False, True, False, id="four-iterations"),
]


@pytest.mark.usefixtures("parents_at_once")
@pytest.mark.parametrize(("sizes", "iterations", "bias", "priors", "none"), CASES)
def test_agrees_with_the_reference(
    sizes: tuple[int, int, int, int, int], iterations: int, bias: bool, priors: bool, none: bool
) -> None:
    given = operands(sizes, seed=sum(sizes) + iterations, bias=bias, priors=priors)
    assert error_of_fused(given, iterations, none_of_the_above=none) < TOLERANCE


def test_many_parents_are_taken_a_few_at_a_time() -> None:
    sizes = (2, 5, 17, 2, 3)
    assert not plan.fits_whole(plan.Sizes(*sizes, operand_bytes=4))
    assert error_of_fused(operands(sizes, seed=0, bias=True, priors=True), 2) < TOLERANCE


WIDE = [  # as above; D or E beyond what a tile holds, in blocks of 32 and 64
    pytest.param((2, 2, 2, 70, 16), 2, False, False, False, id="three-blocks-of-D"),
    pytest.param((2, 5, 2, 8, 130), 2, True, True, True, id="three-blocks-of-E-with-everything"),
    pytest.param((1, 2, 1, 65, 65), 2, True, True, True, id="blocks-of-both"),
    pytest.param((17, 3, 2, 66, 3), 1, False, True, True, id="two-tiles-of-images"),
    pytest.param((1, 17, 1, 4, 66), 2, False, False, True, id="two-ranges-of-children"),
]


@pytest.mark.parametrize(("sizes", "iterations", "bias", "priors", "none"), WIDE)
def test_wide_capsules_are_taken_in_blocks(
    sizes: tuple[int, int, int, int, int], iterations: int, bias: bool, priors: bool, none: bool
) -> None:
    given = operands(sizes, seed=sum(sizes) + iterations, bias=bias, priors=priors)
    assert error_of_fused(given, iterations, none_of_the_above=none) < TOLERANCE


def test_agreement_of_one_block_alone_breaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        """`normalise_wide`, but for all dimensions of a child beyond the first block."""

        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda poses, *operands, **constants: self.kernel[grid](
                torch.where(torch.arange(poses.shape[1], device=DEVICE)[:, None] < constants["DP"], poses, 0),
                *operands,
                **constants,
            )

    given = operands((2, 2, 2, 70, 3), seed=8)
    assert error_of_fused(given, 2) < TOLERANCE
    monkeypatch.setattr(launch_forward, "normalise_wide", Short(launch_forward.normalise_wide))
    assert error_of_fused(given, 2) > 100 * TOLERANCE


@pytest.mark.usefixtures("parents_at_once")
def test_a_parent_may_be_forbidden_to_a_child() -> None:
    given = operands((2, 5, 3, 2, 3), seed=7, priors=True)
    assert given.log_priors is not None
    given.log_priors[1, 0] = given.log_priors[2, 2] = -torch.inf
    assert error_of_fused(given, 2) < TOLERANCE


def test_forgotten_gradients_of_later_iterations_break_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful:
        """`finish_gradients`, but for the part of dV that later iterations have handed on."""

        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *operands, FIRST, **constants: self.kernel[grid](*operands, FIRST=True, **constants)

    given = operands((2, 9, 2, 5, 4), seed=1)
    assert error_of_fused(given, 4) < TOLERANCE
    monkeypatch.setattr(launch_backward, "finish_gradients", Forgetful(launch_backward.finish_gradients))
    assert error_of_fused(given, 4) > 100 * TOLERANCE


@pytest.mark.usefixtures("parents_at_once")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_error_is_at_most_twice_that_of_plain_torch(dtype: torch.dtype) -> None:
    assert_as_near_as_plain_torch(operands((3, 21, 4, 4, 5), seed=2, bias=True).to(dtype))


def test_wide_capsules_are_as_near_as_plain_torch() -> None:
    assert_as_near_as_plain_torch(operands((2, 2, 2, 4, 66), seed=10).to(torch.bfloat16))


def assert_as_near_as_plain_torch(given: Operands) -> None:
    truth = values_and_gradients(route_reference, given.to(torch.float64), 3)
    plain, found = values_and_gradients(route_reference, given, 3), values_and_gradients(fused, given, 3)
    for name, expected in truth.items():
        assert found[name].dtype == given.weights.dtype
        assert rms_error(found[name], expected) <= 2 * rms_error(plain[name], expected), name


@pytest.mark.usefixtures("parents_at_once")
def test_the_same_bits_every_time() -> None:
    given = operands((3, 37, 2, 3, 5), seed=3, bias=True, priors=True).to(torch.float32)
    first, second = values_and_gradients(fused, given, 2), values_and_gradients(fused, given, 2)
    for name, expected in first.items():
        assert torch.equal(second[name], expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("parents_at_once")
def test_a_search_changes_no_number(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    given = operands((1, 3, 3, 2, 3), seed=9, priors=True).to(dtype)
    expected = values_and_gradients(fused, given, 2)
    search_as(monkeypatch, honest=True)
    found = values_and_gradients(fused, given, 2)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_search_that_adds_to_a_gradient_breaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = operands((1, 3, 3, 2, 3), seed=9).to(torch.float32)
    expected = values_and_gradients(fused, given, 2)
    search_as(monkeypatch, honest=False)
    assert rms_error(values_and_gradients(fused, given, 2)["child_poses"], expected["child_poses"]) > 1e-2


def search_as(monkeypatch: pytest.MonkeyPatch, honest: bool) -> None:
    """Launch every kernel once more, as a search does before the launch that counts; or any, not `honest`."""

    def tuned(kernel: str, sizes: plan.Sizes, _: str, __: Any, launch: Any, search: bool = True) -> Any:
        chosen = plan.default_plan(kernel, sizes, multiprocessors=0)
        if search or not honest:
            launch(chosen)
        return launch(chosen)

    monkeypatch.setattr(launch_forward, "launch_tuned", tuned)
    monkeypatch.setattr(launch_backward, "launch_tuned", tuned)


def zero_poses() -> Operands:
    given = operands((2, 5, 3, 3, 4), seed=4)
    return given.__class__(**{**vars(given), "child_poses": torch.zeros_like(given.child_poses)})


def large_votes() -> Operands:
    given = operands((2, 5, 3, 3, 4), seed=5)
    return given.__class__(**{**vars(given), "weights": 1e4 * given.weights})


@pytest.mark.usefixtures("parents_at_once")
@pytest.mark.parametrize("given", [zero_poses(), large_votes()], ids=["zero-poses", "large-votes"])
def test_numbers_are_finite(given: Operands) -> None:
    found = values_and_gradients(fused, given.to(torch.float32), 3)
    assert all(bool(value.isfinite().all()) for value in found.values())


class Allocations(TorchDispatchMode):
    """Notes how many numbers each new tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():  # the interpreter copies bytes
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.usefixtures("parents_at_once")
def test_no_buffer_has_both_children_and_parents() -> None:
    sizes = num_images, num_children, num_parents, _, _ = (3, 150, 6, 1, 2)
    given = operands(sizes, seed=6).to(torch.float32)
    call = Call.prepare(given.child_poses, pack_weights(given.weights), None, False, torch.float32)
    with Allocations() as fused_backend:
        _, totals = route_forward(call, None, 2, torch.float32)
        route_backward(
            call, totals, given.grad, poses_dtype=torch.float32, weights_dtype=None, want_bias=False
        )
    with Allocations() as reference:
        route_reference(given.child_poses, given.weights, 2)
    assert fused_backend.largest < num_images * num_children * num_parents <= reference.largest
