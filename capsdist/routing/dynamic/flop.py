"""Count the FLOP of routing's operators in torch's FlopCounterMode, once this module is imported.

Compiled and exported routing needs that, and the backend `fused`. Outside of compilers the counter sees the
matrix products of `streamed` and `reference` by itself. A module of its own, because the counter's own module
imports Triton.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, R iterations.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Size
from torch.utils.flop_counter import register_flop_formula

import capsdist.routing.dynamic.fused.operators
import capsdist.routing.dynamic.streamed  # noqa: F401 (both for the operators that they register)
from capsdist.routing.dynamic.products import backward_products, forward_products

__all__: list[str] = []


def _product(poses: Size, weights: Size) -> int:
    """Return the FLOP of one matrix product over all children and parents, 2 B I J D E."""
    return 2 * poses[0] * prod(weights)


@register_flop_formula([torch.ops.capsdist.route_streamed, torch.ops.capsdist.route_fused])
def _forward(
    poses: Size, weights: Size, bias: Size | None, priors: Size | None, iterations: int, *_: Any, **__: Any
) -> int:
    return _product(poses, weights) * forward_products(iterations)


def _backward(
    poses: Size, weights: Size, priors: Size | None, iterations: int, want_poses: bool, want_weights: bool
) -> int:
    uniform = priors is None
    return _product(poses, weights) * backward_products(
        iterations, uniform=uniform, want_poses=want_poses, want_weights=want_weights
    )


@register_flop_formula(torch.ops.capsdist.route_streamed_backward)
def _backward_of_streamed(
    grad: Size,
    totals: Size,
    poses: Size,
    weights: Size,
    bias: Size | None,
    priors: Size | None,
    iterations: int,
    none_of_the_above: bool,
    gradient: str,
    group_name: str | None,
    want_poses: bool,
    want_weights: bool,
    *_: Any,
    **__: Any,
) -> int:
    if gradient == "last" and iterations > 1:  # a single iteration, with a coupling of its own
        return _backward(poses, weights, totals, 1, want_poses, want_weights)
    return _backward(poses, weights, priors, iterations, want_poses, want_weights)


@register_flop_formula(torch.ops.capsdist.route_fused_backward)
def _backward_of_fused(
    grad: Size,
    poses: Size,
    weights: Size,
    priors: Size | None,
    totals: Size,
    none_of_the_above: bool,
    operand_dtype: torch.dtype | None,
    want_weights: bool,
    *_: Any,
    **__: Any,
) -> int:
    return _backward(poses, weights, priors, totals[0], True, want_weights)
