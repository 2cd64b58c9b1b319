"""The properties of routing, each held by every backend, and broken by a mutant with a known defect."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from routing_properties import BACKENDS, DEFECTS, LATER, NOT_OBEYED, OF_LATER, PROPERTIES, SIZES, not_numbers
from torch import Tensor

from capsdist.routing import pack_weights, route, route_packed
from capsdist.routing.dynamic.reference import couple
from routing_cases import kept_for_backward, operands


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_backend_obeys(name: str, backend: str, seed: int) -> None:
    assert PROPERTIES[name].obeyed_by(backend, seed)


@pytest.mark.parametrize("algorithm", LATER)
@pytest.mark.parametrize("name", OF_LATER)
def test_later_algorithms_obey(name: str, algorithm: str) -> None:
    measure = PROPERTIES[name].distance
    if name == "gradient":  # Heinsen's probabilities are more strongly curved than a softmax of agreements
        measure = partial(measure, step=2e-4)
    obeyed = measure(LATER[algorithm], 2) < PROPERTIES[name].limit
    assert obeyed == ((name, algorithm) not in NOT_OBEYED)


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_noticed(defect: str) -> None:
    mutant, name = DEFECTS[defect]
    assert PROPERTIES[name].distance(mutant, 0) > 1000 * PROPERTIES[name].limit


@pytest.mark.parametrize("none", [False, True])
def test_coupling_sums_to_1_over_parents_or_less_with_none_of_the_above(none: bool) -> None:
    logits = 3 * torch.randn(4, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sums = couple(logits, none).sum(2)
    assert (sums < 1).all() if none else torch.allclose(sums, torch.ones_like(sums))
    assert not torch.allclose(logits.softmax(1).sum(2), torch.ones_like(sums), atol=0.1)  # the mutant


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_votes_do_not_overflow(backend: str) -> None:
    given = operands(SIZES, seed=6).to(torch.float32)
    assert not_numbers(BACKENDS[backend], given.with_(weights=1e4 * given.weights)) == 0


# What is kept for the backward pass has no votes in it.


def largest_saved(route: Callable[[Tensor, Tensor], Tensor]) -> int:
    """Return the numbers of the largest tensor that autograd keeps."""
    given = operands(SIZES, seed=7)
    poses, weights = (t.clone().requires_grad_() for t in (given.child_poses, pack_weights(given.weights)))
    kept = kept_for_backward(lambda: route(poses, weights))
    return max(tensor.untyped_storage().nbytes() // tensor.itemsize for tensor in kept)


@pytest.mark.property(
    "kept", "`streamed` keeps no votes for the backward pass, and of weights the parameter itself"
)
def test_streamed_keeps_no_votes() -> None:
    _, *sizes_of_weights = SIZES
    assert largest_saved(partial(route_packed, backend="streamed")) == math.prod(sizes_of_weights)


@pytest.mark.defect("kept", "votes kept several times over")
def test_the_reference_keeps_votes() -> None:
    num_images, num_children, num_parents, _, parent_dim = SIZES

    def reference(poses: Tensor, packed: Tensor) -> Tensor:
        return route(poses, packed.permute(3, 0, 2, 1), backend="reference")

    assert largest_saved(reference) >= num_images * num_children * num_parents * parent_dim


@pytest.mark.property("kept")
def test_the_weights_are_kept_as_the_parameter_itself() -> None:
    given = operands(SIZES, seed=8)
    parameter = torch.nn.Parameter(pack_weights(given.weights))
    poses = given.child_poses.clone().requires_grad_()
    kept = kept_for_backward(lambda: route_packed(poses, parameter, backend="streamed"))
    assert any(tensor is parameter for tensor in kept)
    assert [list(tensor.shape) for tensor in kept] == [[5, 23, 3], [4, 6, 3, 23], [3, 4, 5, 6]]
    assert kept[0].data_ptr() == poses.data_ptr()
