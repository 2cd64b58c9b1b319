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

__all__ = ["least_total", "route_em_reference"]


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
        total = weight.sum((1, 3), keepdim=True)[..., None]
        mean = _divide((weight[..., None] * votes).sum((1, 3), keepdim=True), total)
        squares = (weight[..., None] * (votes - mean).square()).sum((1, 3), keepdim=True)
        variance = _divide(squares, total) + options.variance_floor
        cost = ((call.beta_u[:, None] + 0.5 * variance.log()) * total).sum(-1)
        logit = inverse_temperature * (call.beta_a - cost)
    assert mean is not None  # there is an iteration
    assert logit is not None
    side = call.poses.shape[-1]
    parents = mean.flatten(1, 3).unflatten(-1, (side, side))
    return parents, logit.flatten(1, 3).sigmoid()


def least_total(dtype: torch.dtype) -> float:
    """Return the total of R a below which a parent counts as one without children on the way back.

    Gradients through the division by a smaller one may overflow, so they are taken for 0.
    """
    limits = torch.finfo(dtype)
    return limits.tiny / limits.eps


def _divide(sums: Tensor, total: Tensor) -> Tensor:
    """Return sums over children divided by their total of R a: 0 for parents without children."""
    lost = total < least_total(total.dtype)
    sums, total = sums.detach().where(lost, sums), total.detach().where(lost, total)
    return sums / total.clamp(min=torch.finfo(total.dtype).tiny)


def _votes(call: EMCall) -> Tensor:
    """Return the votes [B, K, P, T, C, H]: V = M W, with coordinates added; 0 where there is no child."""
    poses = functional.pad(call.poses.flatten(3), (0, 0, 0, 0, 0, 1)).unflatten(-1, call.poses.shape[-2:])
    seen = poses[:, call.fields.children]  # [B, K, P, T, S, S]
    weights = call.weights.expand(call.fields.size, *call.weights.shape[1:])
    votes = torch.einsum("bkptrx,ktcxs->bkptcrs", seen, weights)
    if call.offsets is not None:
        votes = votes + call.offsets[None, :, None, None, None]
    return votes.flatten(-2)
