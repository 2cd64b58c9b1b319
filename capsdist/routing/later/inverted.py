"""Inverted dot-product attention routing: parents ask, children divide themselves, LayerNorm ends each pass.

Source: Tsai, Srivastava, Goh, Salakhutdinov, "Capsules with Inverted Dot-Product Attention Routing" (ICLR
2020), Procedure 1. With the pose p_j of each parent, 0 at the start:

    a_ij = p_j . votes_ij,  r_ij = softmax over j of a_ij,  p_j = LayerNorm(sum_i r_ij votes_ij)

Agreement is not scaled, as in Procedure 1 (the authors' code divides it by sqrt(E)). The first pass is
uniform.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from capsdist.routing.dynamic.coupled import sum_coupled
from capsdist.routing.later.forms import Backend, linear_votes, make_votes, run_form

__all__ = ["update_inverted"]


def update_inverted(
    child_poses: Tensor,
    packed_weights: Tensor,
    scale: Tensor,
    shift: Tensor,
    parent_poses: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return the parents' poses after one pass from the poses that they have.

    An algorithm of r iterations calls it r times, first without poses. Several layers can take turns: each
    is initialised by a pass without poses, from the lowest on, and then all of them are updated at once from
    the poses of the pass before (the paper's concurrent routing).

    Args:
        child_poses: [B, I, D], of 16, 32 or 64 bits. Float64 is computed in float64, all else in fp32.
        packed_weights: [J, E, D, I].
        scale, shift: [E] of the LayerNorm, which all parents share.
        parent_poses: [B, J, E] p_j, or None for 0: the uniform first pass.
        backend: see `LaterOptions`.

    Returns:
        [B, J, E] in the dtype of `child_poses`.

    Cost: 2 matrix products of 2 B I J D E FLOP forward, one without poses. Kept for the backward pass: the
    arguments and a few [B, J, E].

    Raises:
        ShapeError: a shape, dtype, device or name that cannot be.
        NotImplementedError: a second derivative of `streamed` is asked for.
    """
    operands = child_poses, packed_weights, scale, shift, parent_poses
    return run_form(_streamed, _reference, backend, *operands)


def _streamed(
    child_poses: Tensor, packed_weights: Tensor, scale: Tensor, shift: Tensor, parent_poses: Tensor | None
) -> Tensor:
    if parent_poses is None:
        totals = linear_votes(child_poses, packed_weights) / packed_weights.shape[0]
    else:
        totals = sum_coupled(child_poses, packed_weights, parent_poses)
    return functional.layer_norm(totals, scale.shape, scale, shift)


def _reference(
    child_poses: Tensor, packed_weights: Tensor, scale: Tensor, shift: Tensor, parent_poses: Tensor | None
) -> Tensor:
    votes = make_votes(child_poses, packed_weights)
    poses = torch.zeros_like(votes[:, 0]) if parent_poses is None else parent_poses
    coupling = torch.einsum("bje,bije->bij", poses, votes).softmax(2)
    totals = torch.einsum("bij,bije->bje", coupling, votes)
    return functional.layer_norm(totals, scale.shape, scale, shift)
