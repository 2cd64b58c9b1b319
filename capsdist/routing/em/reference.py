"""EM routing as its paper writes it (Hinton, Sabour, Frosst 2018, Procedure 1), votes and all: the reference.

Shape letters: B images, N child positions, T child types, P parent positions, C parent types, K places of a
field, S side of a pose matrix, H = S * S dimensions of a pose.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from capsdist.routing.common.sharing import log_sigmoid, share
from capsdist.routing.em.options import EMCall

__all__ = ["route_em_reference"]


def route_em_reference(call: EMCall) -> tuple[Tensor, Tensor]:
    """Return poses [B, P, C, S, S] and activations [B, P, C] of the parents, in the dtype of the arguments.

    Arguments: as `route_em`. Cost: autograd keeps the votes, B P K T C H numbers, several times an iteration.
    """
    fields, options = call.fields, call.options
    votes = _votes(call)  # [B, K, P, T, C, H]
    activations = functional.pad(call.activations, (0, 0, 0, 1))[:, fields.children]  # [B, K, P, T], 0: none
    assignment = share(votes.new_zeros(votes.shape[:-1]), fields, options.competition)  # R, equal at first
    mean = variance = logit = None
    for inverse_temperature in options.lambdas():
        if mean is not None and variance is not None and logit is not None:  # E-step
            log_density = -((votes - mean).square() / (2 * variance) + 0.5 * variance.log()).sum(-1)
            assignment = share(log_sigmoid(logit) + log_density, fields, options.competition)
        weight = assignment * activations[..., None]  # M-step: R_ij <- R_ij a_i
        total = weight.sum((1, 3), keepdim=True).clamp(min=torch.finfo(votes.dtype).tiny)
        mean = (weight[..., None] * votes).sum((1, 3), keepdim=True) / total[..., None]
        squares = (weight[..., None] * (votes - mean).square()).sum((1, 3), keepdim=True)
        variance = squares / total[..., None] + options.variance_floor
        cost = ((call.beta_u[:, None] + 0.5 * variance.log()) * total[..., None]).sum(-1)
        logit = inverse_temperature * (call.beta_a - cost)
    assert mean is not None  # there is an iteration
    assert logit is not None
    side = call.poses.shape[-1]
    parents = mean.flatten(1, 3).unflatten(-1, (side, side))
    return parents, logit.flatten(1, 3).sigmoid()


def _votes(call: EMCall) -> Tensor:
    """Return the votes [B, K, P, T, C, H]: V = M W, with coordinates added; 0 where there is no child."""
    poses = functional.pad(call.poses.flatten(3), (0, 0, 0, 0, 0, 1)).unflatten(-1, call.poses.shape[-2:])
    seen = poses[:, call.fields.children]  # [B, K, P, T, S, S]
    weights = call.weights.expand(call.fields.size, *call.weights.shape[1:])
    votes = torch.einsum("bkptrx,ktcxs->bkptcrs", seen, weights)
    if call.offsets is not None:
        votes = votes + call.offsets[None, :, None, None, None]
    return votes.flatten(-2)
