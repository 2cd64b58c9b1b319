"""A baseline: routing as popular public layers write it, with logits as large as the votes."""

from __future__ import annotations

import torch
from torch import Tensor

from capsdist.ops import squash

__all__ = ["route_full_shape"]


def route_full_shape(
    child_poses: Tensor, weights: Tensor, iterations: int = 3, *, bias: Tensor | None = None
) -> Tensor:
    """Return the parent poses with the reference's numbers, but with E equal copies of every logit.

    After the common PyTorch layers: their logits start as zeros of the shape of the votes
    [B, I, J, E] and receive an agreement that broadcasts over E, so that softmax and weighted sum work (and
    autograd saves) E times as much as needed. Their other frequent defects, a softmax over the children
    and weights expanded over the batch, are left out: they would make this baseline wrong, or slower still.

    Args:
        child_poses: [B, I, D].
        weights: [I, J, D, E].
        iterations: r >= 1.
        bias: [J, E], or None.

    Returns:
        [B, J, E].
    """
    votes = torch.einsum("bid,ijde->bije", child_poses, weights)
    logits = torch.zeros_like(votes)
    parent_poses = votes.new_zeros(0)
    for iteration in range(iterations):
        coupling = logits.softmax(dim=2)
        totals = (coupling * votes).sum(dim=1)
        parent_poses = squash(totals if bias is None else totals + bias)
        if iteration < iterations - 1:
            logits = logits + (votes * parent_poses[:, None]).sum(dim=-1, keepdim=True)
    return parent_poses
