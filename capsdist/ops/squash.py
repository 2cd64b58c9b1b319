"""Squash and lengths: the two non-linear functions that turn vectors into capsules.

Both take the Euclidean norm of a vector that is often exactly zero (a ReLU upstream, a dead capsule, a
padded image). `torch.linalg.vector_norm` has the subgradient 0 there, so neither function meets 0/0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capsdist.ops.checks import check_tensor

__all__ = ["lengths", "squash", "squash_backward"]


def squash(totals: Tensor, dim: int = -1) -> Tensor:
    """Shrink vectors to lengths in [0, 1), keeping their direction: v = s |s| / (1 + |s|^2).

    Paper, equation 1, written without the division by |s|: value and gradient are 0 at s = 0.

    Args:
        totals: [..., E, ...], any floating dtype; bf16 and fp16 are computed in fp32.
        dim: the dimension E that holds a vector's components.

    Returns:
        The same shape and dtype as `totals`.

    Range: value and gradient are accurate for lengths from 1.1e-19 to 1e19 in fp32, 1.5e-154 to 1e154 in
    fp64: their squares are normal numbers. Shorter vectors give a value below the smallest normal number, and
    a gradient below 1.1e-19 of the incoming one with an error below 1e-21 of it (fp32). From 1.8e19 on, where
    the square overflows, the result is not valid. Every backend of routing has the same range.

    Raises:
        ShapeError: it is no tensor.
    """
    check_tensor("totals", totals)
    wide = _widen(totals)
    norm = torch.linalg.vector_norm(wide, dim=dim, keepdim=True)
    # n / (1 + n^2) in two divisions: autograd squares a divisor, and the square of 1 + n^2 would overflow
    divisor = (1 + norm * norm).sqrt()
    return (wide * (norm / divisor / divisor)).to(totals.dtype)


def squash_backward(totals: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient for `totals`, given `grad` for `squash(totals)`, along the last dimension.

    For hand-written backwards: with n = |s|, f = n / (1 + n^2) and the unit vector z = s / n (0 at
    s = 0), ds = f g + n (1 - n^2) / (1 + n^2)^2 z (z . g). No quotient of two vanishing numbers is formed.
    The range is that of `squash`.

    Args:
        totals: [..., E], fp32 or fp64.
        grad: [..., E], the same dtype.
    """
    norm = torch.linalg.vector_norm(totals, dim=-1, keepdim=True)
    unit = totals / norm.masked_fill(norm == 0, 1)
    scale = 1 / (1 + norm * norm)
    radial = (unit * grad).sum(-1, keepdim=True)
    return norm * scale * (grad + (1 - norm * norm) * scale * radial * unit)


def lengths(poses: Tensor, dim: int = -1) -> Tensor:
    """Return the Euclidean lengths of capsules, the class scores of the network (paper, section 3).

    Args:
        poses: [B, J, E], any floating dtype.
        dim: the dimension E that holds a vector's components.

    Returns:
        [B, J], in fp32 for bf16 and fp16 poses, so that sums and the loss add no rounding to theirs; the
        gradient is 0 where a pose is 0. They are accurate from 1.1e-19 to 1.8e19 (fp32); shorter ones have an
        error below 1e-21, and a gradient of length 2 at most.

    Raises:
        ShapeError: it is no tensor.
    """
    check_tensor("poses", poses)
    return torch.linalg.vector_norm(_widen(poses), dim=dim)


def _widen(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
