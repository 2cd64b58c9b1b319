"""The oracle itself: against Procedure 1 in plain Python loops, and against the switchable twin."""

from __future__ import annotations

import math

import pytest
import torch
from cases import largest_error, operands, values_and_gradients
from torch import Tensor
from twins import route_twin

from capsdist.routing import route_reference

Matrix = list[list[float]]


def squashed(total: list[float]) -> list[float]:
    norm = math.sqrt(sum(x * x for x in total))
    return [x * norm / (1 + norm**2) for x in total]


def softmax(logits: list[float]) -> list[float]:
    terms = [math.exp(x) for x in logits]
    return [x / sum(terms) for x in terms]


def procedure_1(poses: Tensor, weights: Tensor, iterations: int, none: bool) -> Matrix:
    """Procedure 1 for one image, poses [I, D] and weights [I, J, D, E], number by number."""
    num_children, num_parents, dim_child, dim_parent = weights.shape
    children, parents, dims = range(num_children), range(num_parents), range(dim_parent)
    u, w = poses.tolist(), weights.tolist()
    votes = [
        [[sum(u[i][d] * w[i][j][d][e] for d in range(dim_child)) for e in dims] for j in parents]
        for i in children
    ]
    logits = [[0.0] * (num_parents + none) for _ in children]
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


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("none", [False, True])
def test_reference_is_procedure_1_number_by_number(iterations: int, none: bool) -> None:
    given = operands((2, 5, 3, 2, 4), seed=iterations)
    found = route_reference(given.child_poses, given.weights, iterations, none_of_the_above=none)
    expected = [procedure_1(poses, given.weights, iterations, none) for poses in given.child_poses]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_twin_without_defects_is_the_reference(iterations: int) -> None:
    given = operands((3, 7, 4, 2, 5), seed=10 + iterations, bias=True)
    found = values_and_gradients(route_twin, given, iterations)
    assert largest_error(found, values_and_gradients(route_reference, given, iterations)) < 1e-12
