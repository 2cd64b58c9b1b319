"""The reference itself: against Procedure 1 in plain Python loops, and against the switchable mutant."""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import torch
from mutants import route_mutant
from torch import Tensor

from capsdist.bench.memory import saved_bytes
from capsdist.errors import ShapeError
from capsdist.routing import route_reference
from routing_cases import largest_error, operands, values_and_gradients

Matrix = list[list[float]]


def squashed(total: list[float]) -> list[float]:
    norm = math.sqrt(sum(x * x for x in total))
    return [x * norm / (1 + norm**2) for x in total]


def softmax(logits: list[float]) -> list[float]:
    terms = [math.exp(x) for x in logits]
    return [x / sum(terms) for x in terms]


def procedure_1(poses: Tensor, weights: Tensor, priors: Tensor, iterations: int, none: bool) -> Matrix:
    """Procedure 1 for one image, poses [I, D], weights [I, J, D, E], priors [I, J], number by number."""
    num_children, num_parents, child_dim, parent_dim = weights.shape
    children, parents, dims = range(num_children), range(num_parents), range(parent_dim)
    u, w = poses.tolist(), weights.tolist()
    votes = [
        [[sum(u[i][d] * w[i][j][d][e] for d in range(child_dim)) for e in dims] for j in parents]
        for i in children
    ]
    logits = [row + [0.0] * none for row in priors.tolist()]
    v: Matrix = []
    for _ in range(iterations):
        coupling = [softmax(row) for row in logits]
        v = [
            squashed([sum(coupling[i][j] * votes[i][j][e] for i in children) for e in dims]) for j in parents
        ]
        for i in children:
            for j in parents:
                logits[i][j] += sum(votes[i][j][e] * v[j][e] for e in dims)
    return v


@pytest.mark.property(
    "procedure-1", "the reference is Procedure 1 in plain loops; `streamed` agrees with it to 1e-10"
)
@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("none", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_reference_is_procedure_1_number_by_number(iterations: int, none: bool, learned: bool) -> None:
    given = operands((2, 5, 3, 2, 4), seed=iterations, priors=True)
    assert given.log_priors is not None
    priors = given.log_priors if learned else torch.zeros_like(given.log_priors)
    found = route_reference(
        given.child_poses,
        given.weights,
        iterations,
        log_priors=priors if learned else None,
        none_of_the_above=none,
    )
    expected = [procedure_1(poses, given.weights, priors, iterations, none) for poses in given.child_poses]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_mutant_without_defects_is_the_reference(iterations: int) -> None:
    given = operands((3, 7, 4, 2, 5), seed=10 + iterations, bias=True)
    found = values_and_gradients(route_mutant, given, iterations)
    assert largest_error(found, values_and_gradients(route_reference, given, iterations)) < 1e-12


@pytest.mark.parametrize("gradient", ["full", "last"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_recomputed_iterations_have_the_same_numbers(gradient: str, iterations: int) -> None:
    given = operands((3, 7, 4, 2, 5), seed=iterations, bias=True, priors=True)
    options = {"gradient": gradient, "none_of_the_above": True}
    kept = values_and_gradients(route_reference, given, iterations, **options)
    found = values_and_gradients(route_reference, given, iterations, recompute="iterations", **options)
    assert largest_error(found, kept) == 0


def test_recomputed_iterations_keep_less() -> None:
    given = operands((8, 20, 5, 2, 4), seed=3)
    poses = given.child_poses.clone().requires_grad_()
    none, iterations = (
        saved_bytes(partial(route_reference, poses, given.weights, 5, recompute=recompute))
        for recompute in ("none", "iterations")
    )
    votes = 8 * 20 * 5 * 4 * 8
    assert votes <= iterations < none


@pytest.mark.property(
    "last", "`gradient=last` is the public form with detached votes, and not the full gradient"
)
@pytest.mark.parametrize("iterations", [2, 3])
def test_the_gradient_of_the_last_iteration_is_that_of_detached_votes(iterations: int) -> None:
    given = operands((3, 7, 4, 2, 5), seed=20 + iterations)
    public = values_and_gradients(route_mutant, given, iterations, detach_votes=True)
    last = values_and_gradients(route_reference, given, iterations, gradient="last")
    assert largest_error(last, public) < 1e-12
    full = values_and_gradients(route_reference, given, iterations)
    assert largest_error(full, public) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations=0 must be a whole number of at least 1; the paper has 3"),
        ({"gradient": "Last"}, "gradient='Last' is unknown; choose 'full' or 'last'"),
        ({"recompute": "streamed"}, "recompute='streamed' is unknown; choose 'none' or 'iterations'"),
    ],
)
def test_refusals_name_value_and_remedy(options: dict, message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        route_reference(torch.zeros(2, 5, 3), torch.zeros(5, 4, 3, 6), **options)
