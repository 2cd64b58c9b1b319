"""End an iteration with torch operations, for parents of more than 64 dimensions.

The functions do as the kernels of the same names: passes over numbers [J, B, E], which are few beside the
products of such parents. Like kernels they wait for nothing, and add in the same order every time.

Shape letters: B images, J parents, E parent dimension, R iterations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capsdist.ops import squash, squash_backward

__all__ = ["begin_gradients", "finish_gradients", "finish_totals"]


def finish_totals(
    parts: Tensor,
    bias: Tensor | None,
    total: Tensor,
    state: Tensor,
    operand: Tensor,
    parent_poses: Tensor,
    *,
    scale: float,
    first: bool,
    last: bool,
) -> None:
    """Write total [J, B, E] = scale * sum of parts [splits, J, B, E] + bias [J, E].

    Its squash goes to parent_poses [B, J, E] if it is the last; otherwise it is added to `state` [J, B, E],
    which `operand` has in the dtype of the products.
    """
    torch.sum(parts, 0, out=total)
    total *= scale
    if bias is not None:
        total += bias[:, None]
    if last:
        parent_poses.copy_(squash(total).transpose(0, 1))
        return
    if first:
        state.zero_()
    state += squash(total)
    operand.copy_(state)


def begin_gradients(
    totals: Tensor, grad: Tensor, states: Tensor, d_totals: Tensor, d_operand: Tensor
) -> None:
    """Rebuild states [R - 1, J, B, E] from totals [R, J, B, E]; write the last ds, given grad [B, J, E]."""
    state = torch.zeros_like(totals[0])
    for iteration, kept in enumerate(states):
        state += squash(totals[iteration])
        kept.copy_(state)
    d_totals[-1] = squash_backward(totals[-1], grad.transpose(0, 1).float())
    d_operand[-1] = d_totals[-1]


def finish_gradients(
    parts: Tensor, total: Tensor, d_state: Tensor, d_total: Tensor, d_operand: Tensor, *, first: bool
) -> None:
    """Add parts [splits, J, B, E] to dV in `d_state` [J, B, E]; write ds of one iteration with `total`."""
    if first:
        d_state.zero_()
    d_state += parts.sum(0)
    d_total.copy_(squash_backward(total, d_state))
    d_operand.copy_(d_total)
