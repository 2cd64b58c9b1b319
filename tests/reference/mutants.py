"""Mutants: the defects of public capsule code, one a switch, so that each property is seen to fail once.

With every switch off, `route_mutant` is Procedure 1 (a test holds it against the reference).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from capsdist.ops import margin_loss, squash


def route_mutant(
    child_poses: Tensor,
    weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    softmax_dim: int = 2,
    mean_over_batch: bool = False,
    extra_passes: int = 0,
    detach_votes: bool = False,
    squash: Callable[[Tensor], Tensor] = squash,
) -> Tensor:
    """Route child poses [B, I, D] by weights [I, J, D, E], with the defects that are switched on."""
    votes = torch.einsum("bid,ijde->bije", child_poses, weights)
    logits = votes.new_zeros(votes.shape[:3])
    parent_poses = votes.new_zeros(0)
    passes = iterations + extra_passes
    for iteration in range(passes):
        last = iteration == passes - 1
        seen = votes.detach() if detach_votes and not last else votes
        totals = torch.einsum("bij,bije->bje", logits.softmax(softmax_dim), seen)
        parent_poses = squash(totals if bias is None else totals + bias)
        agreement = torch.einsum("bije,bje->bij", seen, parent_poses)
        logits = logits + (agreement.mean(0, keepdim=True) if mean_over_batch else agreement)
    return parent_poses


def squash_unguarded(totals: Tensor) -> Tensor:
    """Equation 1 as it is printed: 0/0 at a zero vector."""
    norm = totals.square().sum(-1, keepdim=True).sqrt()
    return norm**2 / (1 + norm**2) * totals / norm


def margin_loss_of_softmax(lengths: Tensor, targets: Tensor) -> Tensor:
    """Margin loss after a softmax over the lengths."""
    return margin_loss(lengths.softmax(1), targets)


def pack_by_reshape(weights: Tensor) -> Tensor:
    """Weights [I, J, D, E] brought to the packed shape without moving a number."""
    num_children, num_parents, child_dim, parent_dim = weights.shape
    return weights.reshape(num_parents, parent_dim, child_dim, num_children)
