"""Count the FLOP of the later algorithms' operators in torch's FlopCounterMode, once this module is imported.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Size
from torch.utils.flop_counter import register_flop_formula

import capsdist.routing.dynamic.coupled
import capsdist.routing.later.heinsen_sums  # noqa: F401 (both for the operators that they register)

__all__: list[str] = []


def _product(poses: Size, weights: Size) -> int:
    """Return the FLOP of one matrix product over all children and parents, 2 B I J D E."""
    return 2 * poses[0] * prod(weights)


@register_flop_formula(torch.ops.capsdist.sum_coupled)
def _coupled(poses: Size, weights: Size, *_: Any, **__: Any) -> int:
    return 2 * _product(poses, weights)


@register_flop_formula(torch.ops.capsdist.sum_coupled_backward)
def _coupled_backward(
    grad: Size,
    poses: Size,
    weights: Size,
    states: Size,
    want_poses: bool,
    want_weights: bool,
    *_: Any,
    **__: Any,
) -> int:
    return (3 + 2 * want_weights) * _product(poses, weights)


@register_flop_formula(torch.ops.capsdist.heinsen_sums)
def _heinsen(active: Size, poses: Size, weights: Size, *_: Any, **__: Any) -> int:
    return _product(poses, weights)


@register_flop_formula(torch.ops.capsdist.heinsen_sums_backward)
def _heinsen_backward(*shapes: Any, **__: Any) -> int:
    return 3 * _product(shapes[5], shapes[6])  # the votes again, and their gradients
