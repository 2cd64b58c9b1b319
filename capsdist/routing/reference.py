"""Routing by agreement exactly as the paper writes it, votes and all: the oracle, never optimised.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capsdist.ops import squash

__all__ = ["route_reference"]


def route_reference(
    child_poses: Tensor,
    weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    none_of_the_above: bool = False,
) -> Tensor:
    """Return the parent poses, by Procedure 1 of the paper (section 2), in the dtype of its arguments.

    Args:
        child_poses: [B, I, D] u_i.
        weights: [I, J, D, E] W_ij.
        iterations: r; the softmax runs exactly r times.
        bias: [J, E] added to the totals before squash (official code), or None.
        none_of_the_above: add one logit that stays 0 to the softmax and drop its coupling ("leaky" routing).

    Returns:
        [B, J, E] v_j. Cost: autograd keeps the votes, B I J E numbers, several times over.
    """
    votes = torch.einsum("bid,ijde->bije", child_poses, weights)
    logits = votes.new_zeros(votes.shape[:3])  # line 2: b_ij <- 0
    parent_poses = votes.new_zeros(0)
    for iteration in range(iterations):
        coupling = couple(logits, none_of_the_above)  # line 4: c_i <- softmax(b_i)
        totals = torch.einsum("bij,bije->bje", coupling, votes)  # line 5: s_j <- sum_i c_ij votes_ij
        if bias is not None:
            totals = totals + bias
        parent_poses = squash(totals)  # line 6: v_j <- squash(s_j)
        if iteration < iterations - 1:  # line 7: the agreement after the last pass is not used
            logits = logits + torch.einsum("bije,bje->bij", votes, parent_poses)
    return parent_poses


def couple(logits: Tensor, none_of_the_above: bool) -> Tensor:
    """Return the coupling coefficients (paper, equation 3): a softmax over the PARENTS of each child.

    Args:
        logits: [B, I, J] b_ij.
        none_of_the_above: let one more logit, of 0, compete, so that a child's coupling sums to less than 1.

    Returns:
        [B, I, J] c_ij.
    """
    if none_of_the_above:
        none = logits.new_zeros(*logits.shape[:2], 1)
        return torch.cat((logits, none), dim=2).softmax(dim=2)[:, :, :-1]
    return logits.softmax(dim=2)
