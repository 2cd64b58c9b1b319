"""Torch's FLOP counter finds what the benchmarks count, whoever runs the passes."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import capsdist.routing.dynamic.flop  # noqa: F401 (tells the counter of operators)
from capsdist.bench.routing import Case
from capsdist.models import ClassCapsules
from capsdist.routing import route_packed

CASES = [
    pytest.param(Case(3, 5, num_parents=4, child_dim=2, parent_dim=6, iterations=r), id=f"r={r}")
    for r in (1, 3)
]


def operator(poses: torch.Tensor, weights: torch.Tensor, iterations: int) -> torch.Tensor:
    return torch.ops.capsdist.route_streamed(poses, weights, None, None, iterations, False, "full", None)[0]


def fused(poses: torch.Tensor, weights: torch.Tensor, iterations: int) -> torch.Tensor:
    if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("kernels are interpreted on a CPU only")
    return route_packed(poses, weights, iterations, backend="fused")


@pytest.mark.parametrize("route", [route_packed, operator, fused])
@pytest.mark.parametrize("case", CASES)
def test_both_passes_count_as_in_the_benchmarks(case: Case, route: Any) -> None:
    poses, weights, grad = case.operands()
    with FlopCounterMode(display=False) as forward:
        parent_poses = route(poses, weights, case.iterations)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(parent_poses, (poses, weights), grad)
    assert forward.get_total_flops() == case.forward_flop
    assert backward.get_total_flops() == case.flop - case.forward_flop


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("priors", [False, True])
@pytest.mark.parametrize("gradient", ["full", "last"])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_operators_count_the_products_that_run(
    iterations: int, priors: bool, gradient: str, wanted: tuple[bool, bool]
) -> None:
    poses, weights, given = torch.randn(3, 5, 2), torch.randn(4, 6, 2, 5), torch.randn(5, 4)
    poses, weights = (t.requires_grad_(want) for t, want in zip((poses, weights), wanted, strict=True))
    log_priors = given if priors else None

    def operator() -> torch.Tensor:
        options = (iterations, False, gradient, None)
        return torch.ops.capsdist.route_streamed(poses, weights, None, log_priors, *options)[0]

    def function() -> torch.Tensor:
        return route_packed(poses, weights, iterations, log_priors=log_priors, gradient=gradient)  # pyright: ignore[reportArgumentType]

    counts = []
    for run in (operator, function):
        with FlopCounterMode(display=False) as counter:
            run().sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_an_exported_layer_is_counted() -> None:
    layer, poses = ClassCapsules(5, 2, 4, 6), torch.randn(3, 5, 2)
    program = torch.export.export(layer, (poses,)).module()
    with FlopCounterMode(display=False) as counter:
        program(poses)
    assert counter.get_total_flops() == Case(3, 5, num_parents=4, child_dim=2, parent_dim=6).forward_flop
