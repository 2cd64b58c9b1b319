"""Self-attention routing of Efficient-CapsNet: one pass, coupled by the agreement of votes with each other.

Source: Mazzia, Salvetti, Chiaberge, "Efficient-CapsNet: Capsule Network with Self-Attention Routing"
(Scientific Reports 2021), section "Self-attention routing", and its squash in the section on the network.

For each parent j the paper has a matrix A_j = votes_j votes_j^T / sqrt(d) [I, I], of which it uses the sums
of rows alone. These are b_ij = votes_ij . S_j / sqrt(d) with S_j = sum_i votes_ij, so the matrix is never
formed:

    c_ij = softmax over j of b_ij,  s_j = sum_i (c_ij + B_ij) votes_ij,  v_j = (1 - exp(-|s_j|)) s_j / |s_j|

The paper calls B "log priors" and adds it after the softmax. Chosen here: d is E, the dimensions of a vote,
as in the authors' code; the paper names the dimension of the children.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from capsdist.routing.dynamic.coupled import sum_coupled
from capsdist.routing.later.forms import Backend, linear_votes, make_votes, run_form, sum_votes

__all__ = ["route_attention", "soft_squash"]


def route_attention(
    child_poses: Tensor,
    packed_weights: Tensor,
    log_priors: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return the parent poses of self-attention routing.

    Args:
        child_poses: [B, I, D], of 16, 32 or 64 bits. Float64 is computed in float64, all else in fp32.
        packed_weights: [J, E, D, I].
        log_priors: [I, J] B, added to the coupling, or None for 0.
        backend: see `LaterOptions`.

    Returns:
        [B, J, E] of lengths below 1, in the dtype of `child_poses`.

    Cost: 3 matrix products of 2 B I J D E FLOP forward and one with priors. Kept for the backward pass: the
    arguments and a few [B, J, E]; with priors no copy of the weights (they are multiplied again).

    Raises:
        ShapeError: a shape, dtype, device or name that cannot be.
        NotImplementedError: a second derivative of `streamed` is asked for.
    """
    return run_form(_streamed, _reference, backend, child_poses, packed_weights, log_priors)


def _streamed(child_poses: Tensor, packed_weights: Tensor, log_priors: Tensor | None) -> Tensor:
    sums = linear_votes(child_poses, packed_weights)
    totals = sum_coupled(child_poses, packed_weights, sums / math.sqrt(sums.shape[2]))
    if log_priors is not None:
        more = checkpoint(sum_votes, child_poses, packed_weights, log_priors, use_reentrant=False)
        totals = totals + more
    return soft_squash(totals)


def _reference(child_poses: Tensor, packed_weights: Tensor, log_priors: Tensor | None) -> Tensor:
    """Compute as the paper writes it, with the matrix [B, J, I, I]."""
    votes = make_votes(child_poses, packed_weights)
    attention = torch.einsum("bije,bkje->bjik", votes, votes) / math.sqrt(votes.shape[3])
    coupling = attention.sum(3).softmax(1)  # [B, J, I], over parents
    if log_priors is not None:
        coupling = coupling + log_priors.T
    return soft_squash(torch.einsum("bji,bije->bje", coupling, votes))


def soft_squash(totals: Tensor) -> Tensor:
    """Shrink vectors [..., E] to lengths in [0, 1): v = (1 - exp(-|s|)) s / |s|, 0 with slope 1 at 0."""
    norm = torch.linalg.vector_norm(totals, dim=-1, keepdim=True)
    zero = norm == 0
    safe = norm.masked_fill(zero, 1)
    return totals * torch.where(zero, 1, -torch.expm1(-safe) / safe)
