"""Routing by agreement exactly as the paper writes it, votes and all: the reference, never optimised.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from capsdist.ops import squash
from capsdist.routing.common.checks import check_name
from capsdist.routing.dynamic.options import Gradient, ReferenceRecompute, check_iterations

__all__ = ["couple", "logits_reference", "route_reference"]


def route_reference(
    child_poses: Tensor,
    weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
    none_of_the_above: bool = False,
    gradient: Gradient = "full",
    recompute: ReferenceRecompute = "none",
) -> Tensor:
    """Return the parent poses, by Procedure 1 of the paper (section 2), in the dtype of its arguments.

    Args:
        child_poses: [B, I, D] u_i.
        weights: [I, J, D, E] W_ij.
        iterations: r; the softmax runs exactly r times.
        bias: [J, E] added to the totals before squash (official code), or None.
        log_priors: [I, J] logits to start from (paper, section 2: "log prior probabilities"), or None for 0.
        none_of_the_above: add one logit that stays 0 to the softmax and drop its coupling ("leaky" routing).
        gradient: `full` goes through all iterations; `last` takes what the earlier ones add to the logits
            for a constant.
        recompute: `none` keeps what every iteration computes for the backward pass; `iterations` keeps
            votes and logits, and builds the rest again, one iteration at a time (torch's `checkpoint`).

    Returns:
        [B, J, E] v_j. Cost: autograd keeps the votes, B I J E numbers, several times over.

    Raises:
        ShapeError: no iterations, or an unknown name.
    """
    check_iterations(iterations)
    check_name("gradient", gradient, get_args(Gradient))
    check_name("recompute", recompute, get_args(ReferenceRecompute))
    votes = torch.einsum("bid,ijde->bije", child_poses, weights)
    logits = votes.new_zeros(votes.shape[:3])  # line 2: b_ij <- 0
    if log_priors is not None:
        logits = logits + log_priors
    parent_poses = None
    for _ in range(iterations):
        arguments = (votes, logits, parent_poses, bias, none_of_the_above, gradient)
        if recompute == "iterations":
            parent_poses, logits = checkpoint(_iterate, *arguments, use_reentrant=False)
        else:
            parent_poses, logits = _iterate(*arguments)
    assert parent_poses is not None
    return parent_poses


@torch.no_grad()
def logits_reference(
    child_poses: Tensor,
    weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
    none_of_the_above: bool = False,
) -> Tensor:
    """Return the logits b_ij that every iteration of `route_reference` couples by, without gradients.

    Logits r + 1 less logits r are what iteration r added (figure A.1); `couple` makes coupling of them.
    Arguments and errors: as `route_reference`.

    Returns:
        [R, B, I, J] of R iterations, in the dtype of the arguments; the first are those that routing starts
        from. Cost: the votes, B I J E numbers, and the result are in memory.

    Example:
        >>> logits_reference(torch.ones(2, 6, 8), torch.ones(6, 10, 8, 16), iterations=4).shape
        torch.Size([4, 2, 6, 10])
    """
    check_iterations(iterations)
    votes = torch.einsum("bid,ijde->bije", child_poses, weights)
    logits = votes.new_zeros(votes.shape[:3]) + (0 if log_priors is None else log_priors)
    parent_poses, found = None, []
    for _ in range(iterations):
        parent_poses, logits = _iterate(votes, logits, parent_poses, bias, none_of_the_above, "full")
        found.append(logits)
    return torch.stack(found)


def _iterate(
    votes: Tensor,
    logits: Tensor,
    parent_poses: Tensor | None,
    bias: Tensor | None,
    none_of_the_above: bool,
    gradient: str,
) -> tuple[Tensor, Tensor]:
    """Return the parent poses [B, J, E] of one pass, and the logits [B, I, J] that it used."""
    if parent_poses is not None:  # line 7 of the pass before: b_ij <- b_ij + votes_ij . v_j
        agreement = torch.einsum("bije,bje->bij", votes, parent_poses)
        logits = logits + (agreement.detach() if gradient == "last" else agreement)
    coupling = couple(logits, none_of_the_above)  # line 4: c_i <- softmax(b_i)
    totals = torch.einsum("bij,bije->bje", coupling, votes)  # line 5: s_j <- sum_i c_ij votes_ij
    if bias is not None:
        totals = totals + bias
    return squash(totals), logits  # line 6: v_j <- squash(s_j)


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
