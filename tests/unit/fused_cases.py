"""Operands for the tests of the fused backend, and the two sides that they compare."""

from __future__ import annotations

from functools import partial

import torch

import routing_cases
from capsdist.routing import route, route_packed, route_reference
from routing_cases import Operands, values_and_gradients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # there Triton interprets, see tests/conftest.py

fused = partial(route, backend="fused")
fused_packed = partial(route_packed, backend="fused")
largest_error = partial(routing_cases.largest_error, smallest_scale=0.0)


def operands(
    sizes: tuple[int, int, int, int, int], seed: int, *, bias: bool = False, priors: bool = False
) -> Operands:
    """Draw operands of sizes B, I, J, D, E in float64 on `DEVICE`."""
    return routing_cases.operands(sizes, seed, bias=bias, priors=priors).to(DEVICE)


def error_of_fused(given: Operands, iterations: int, **options: object) -> float:
    """Return how far the fused backend in fp32 is from the reference in float64."""
    expected = values_and_gradients(route_reference, given, iterations, **options)
    found = values_and_gradients(fused, given.to(torch.float32), iterations, **options)
    return largest_error(found, expected)
