"""The laws of routing, each held by every form, and broken by a twin with a known defect of public code."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import Operands, operands, values_and_gradients
from torch import Tensor
from twins import pack_by_reshape, route_twin, squash_unguarded

from capsdist.ops import squash
from capsdist.routing import pack_weights, route, route_streamed
from capsdist.routing.reference import couple

Route = Callable[..., Tensor]
FORMS = [pytest.param(partial(route, form=form), id=form) for form in ("reference", "streamed")]
SIZES = (5, 23, 4, 3, 6)  # B, I, J, D, E


def unsquash(poses: Tensor) -> Tensor:
    """The totals s whose squash the poses are: |v| = |s|^2 / (1 + |s|^2), solved for |s|."""
    norm = poses.norm(dim=-1, keepdim=True)
    return poses / norm * (norm / (1 - norm)).sqrt()


# Coupling sums to 1 over the parents of a child.


def lost_by_coupling(route: Route, seed: int) -> float:
    """Give all parents the same votes but different biases: together they must get each child once."""
    given = operands(SIZES, seed, bias=True)
    shared = given.weights[:, :1].expand_as(given.weights)
    assert given.bias is not None
    totals = unsquash(route(given.child_poses, shared, 3, bias=given.bias)) - given.bias
    sum_of_votes = torch.einsum("bid,ide->be", given.child_poses, shared[:, 0])
    return float((totals.sum(1) - sum_of_votes).abs().max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_parents_share_each_child_exactly_once(form: Route, seed: int) -> None:
    assert lost_by_coupling(form, seed) < 1e-9


def test_softmax_over_children_breaks_the_sharing() -> None:
    assert lost_by_coupling(partial(route_twin, softmax_dim=1), seed=0) > 0.1


@pytest.mark.parametrize("none", [False, True])
def test_coupling_sums_to_1_over_parents_or_less_with_none_of_the_above(none: bool) -> None:
    logits = 3 * torch.randn(4, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sums = couple(logits, none).sum(2)
    assert (sums < 1).all() if none else torch.allclose(sums, torch.ones_like(sums))
    assert not torch.allclose(logits.softmax(1).sum(2), torch.ones_like(sums), atol=0.1)  # the twin


# An image's result does not depend on the batch it is in.


def change_by_company(route: Route, seed: int) -> float:
    given = operands(SIZES, seed)
    together = route(given.child_poses, given.weights, 3)
    alone = route(given.child_poses[2:3], given.weights, 3)
    return float((together[2:3] - alone).abs().max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_an_image_is_routed_as_if_alone(form: Route, seed: int) -> None:
    assert change_by_company(form, seed) < 1e-12


def test_logits_averaged_over_the_batch_break_it() -> None:
    assert change_by_company(partial(route_twin, mean_over_batch=True), seed=0) > 1e-3


# r iterations are r softmax passes.


def error_of_one_and_two_iterations(route: Route) -> float:
    """Compare r = 1 and r = 2 with their closed forms."""
    given = operands(SIZES, seed=3)
    votes = torch.einsum("bid,ijde->bije", given.child_poses, given.weights)
    once = squash(votes.sum(1) / SIZES[2])
    coupling = torch.einsum("bije,bje->bij", votes, once).softmax(2)
    twice = squash((coupling[..., None] * votes).sum(1))
    return max(
        float((route(given.child_poses, given.weights, r) - expected).abs().max())
        for r, expected in ((1, once), (2, twice))
    )


@pytest.mark.parametrize("form", FORMS)
def test_r_means_r(form: Route) -> None:
    assert error_of_one_and_two_iterations(form) < 1e-12


def test_an_extra_pass_breaks_it() -> None:
    assert error_of_one_and_two_iterations(partial(route_twin, extra_passes=1)) > 1e-3


# Neither the order of children nor that of parents means anything.


def change_by_permutation(route: Route, seed: int) -> float:
    given = operands(SIZES, seed)
    generator = torch.Generator().manual_seed(seed)
    children = torch.randperm(SIZES[1], generator=generator)
    parents = torch.tensor([2, 3, 1, 0])
    plain = route(given.child_poses, given.weights, 3)
    moved = route(given.child_poses[:, children], given.weights[children][:, parents], 3)
    return float((plain[:, parents] - moved).abs().max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_permuted_children_and_parents(form: Route, seed: int) -> None:
    assert change_by_permutation(form, seed) < 1e-12


def test_weights_packed_by_reshape_break_it() -> None:
    def reshaped(child_poses: Tensor, weights: Tensor, iterations: int) -> Tensor:
        return route_streamed(child_poses, pack_by_reshape(weights), iterations)

    assert change_by_permutation(reshaped, seed=0) > 1e-3


# The gradient goes through all iterations.


def error_of_directional_derivative(route: Route, seed: int) -> float:
    """Compare the gradient of the weights with a central difference along a random direction."""
    given = operands(SIZES, seed)
    direction = operands(SIZES, seed + 1).weights
    step = 1e-5

    def value(weights: Tensor) -> float:
        return float((route(given.child_poses, weights, 3) * given.grad).sum())

    numeric = (value(given.weights + step * direction) - value(given.weights - step * direction)) / (2 * step)
    exact = float((values_and_gradients(route, given, 3)["weights"] * direction).sum())
    return abs(exact - numeric) / abs(numeric)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_that_of_all_iterations(form: Route) -> None:
    assert error_of_directional_derivative(form, seed=4) < 1e-6


def test_detached_votes_break_it() -> None:
    assert error_of_directional_derivative(partial(route_twin, detach_votes=True), seed=4) > 1e-3


# Gradients are finite at zero poses, and large logits do not overflow.


def zero_poses() -> Operands:
    given = operands(SIZES, seed=5)
    return given.with_(child_poses=torch.zeros_like(given.child_poses))


def is_finite(route: Route, given: Operands) -> bool:
    return all(bool(t.isfinite().all()) for t in values_and_gradients(route, given, 3).values())


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_finite_at_zero_poses(form: Route) -> None:
    assert is_finite(form, zero_poses())


def test_unguarded_squash_breaks_it() -> None:
    assert not is_finite(partial(route_twin, squash=squash_unguarded), zero_poses())


@pytest.mark.parametrize("form", FORMS)
def test_large_votes_do_not_overflow(form: Route) -> None:
    given = operands(SIZES, seed=6).to(torch.float32)
    assert is_finite(form, given.with_(weights=1e4 * given.weights))


# What is kept for the backward pass has no votes in it.


def largest_saved(route: Callable[[Tensor, Tensor], Tensor]) -> int:
    """Return the numbers of the largest tensor that autograd keeps."""
    given = operands(SIZES, seed=7)
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.untyped_storage().nbytes() // tensor.itemsize)
        return tensor

    poses, weights = (t.clone().requires_grad_() for t in (given.child_poses, pack_weights(given.weights)))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        route(poses, weights)
    return max(sizes)


def test_streamed_keeps_no_votes() -> None:
    _, *sizes_of_weights = SIZES
    assert largest_saved(route_streamed) == math.prod(sizes_of_weights)


def test_the_reference_keeps_votes() -> None:
    num_images, num_children, num_parents, _, dim_parent = SIZES

    def reference(poses: Tensor, packed: Tensor) -> Tensor:
        return route(poses, packed.permute(3, 0, 2, 1), form="reference")

    assert largest_saved(reference) >= num_images * num_children * num_parents * dim_parent


def test_the_weights_are_kept_as_the_parameter_itself() -> None:
    given = operands(SIZES, seed=8)
    parameter = torch.nn.Parameter(pack_weights(given.weights))
    poses = given.child_poses.clone().requires_grad_()
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        route_streamed(poses, parameter)
    assert any(tensor is parameter for tensor in kept)
    assert [list(tensor.shape) for tensor in kept] == [[5, 23, 3], [4, 6, 3, 23], [3, 4, 5, 6]]
    assert kept[0].data_ptr() == poses.data_ptr()
