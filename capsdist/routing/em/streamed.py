"""EM routing without stored votes: the numbers of `reference` in a fraction of its memory.

The backward pass needs the arguments and what each iteration makes of the parents: mean, variance, total and
logit, 2 H + 2 numbers a parent. Votes, assignments and their gradients are built again, a block of images at
a time (`streamed_passes`). With S_j = sum_i r_ij, r_ij = R_ij a_i, D = V_ij - mean_j, per dimension h:

    M-step  mean = sum_i r V / S,  var = sum_i r D^2 / S + floor,
            x = lambda (beta_a - sum_h (beta_u + log sd) S)
    E-step  L_ij = log sigmoid(x_j) - sum_h (D^2 / (2 var) + log sd),  R_ij = softmax of L over i's parents

    backward, M-step: with dvar and dS of the cost added,
        dr_ij = sum_h D (dmean + dvar D) / S + dS - sum_h dvar (var - floor) / S
        dV_ij += r_ij (dmean + 2 dvar D) / S; what is divided by S is 0 where S is below `least_total`
    backward, E-step: with dL = R (dR - sum over i's parents of R dR),
        dmean = sum_i dL D / var,  dvar = sum_i dL (D^2 / var - 1) / (2 var),
        dx = (1 - sigmoid(x)) sum_i dL
        dV_ij -= dL D / var

Exact through all iterations.

Shape letters: as `options`; R iterations, H = S * S dimensions of a pose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from capsdist.routing.common.autograd import refusing
from capsdist.routing.common.fields import FIELDS_SCHEMA, fields_of
from capsdist.routing.common.operators import Signature, own_backward
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.common.tiling import Scratch, slices
from capsdist.routing.em.options import EM_SCHEMA, EMCall, EMOptions
from capsdist.routing.em.streamed_passes import Block, Gradients, Sizes, Stats

__all__ = ["blocks_of", "route_em_streamed"]


def route_em_streamed(call: EMCall) -> tuple[Tensor, Tensor]:
    """Return poses [B, P, C, S, S] and activations [B, P, C] of the parents, in the dtypes of the children's.

    Computed in fp32, float64 for float64, also under autocast. Kept for the backward pass: the arguments and
    R B P C (2 H + 2) numbers.
    """
    operands = call.poses, call.activations, call.weights, call.beta_u, call.beta_a, call.offsets
    poses, activations, *_ = _route(*operands, *call.fields.numbers, *call.options.numbers)
    return poses, activations


def _call(arguments: tuple[Any, ...]) -> EMCall:
    """Return the call of the arguments of a pass: six tensors, numbers of fields and of options."""
    poses, activations, weights, beta_u, beta_a, offsets = arguments[:6]
    fields, options = fields_of(*arguments[6:11]), EMOptions(*arguments[11:])
    return EMCall(poses, activations, weights, beta_u, beta_a, fields, options, offsets)


def _empty(*arguments: Any) -> tuple[Tensor, ...]:
    """Return memory for what `_forward` returns."""
    call = _call(arguments)
    side, types = call.poses.shape[-1], call.weights.shape[2]
    shape, number = (call.poses.shape[0], call.fields.num_parents), call.options.iterations
    dtype = wide_dtype(call.poses)
    return (
        call.poses.new_empty(*shape, types, side, side),
        call.activations.new_empty(*shape, types),
        *(call.poses.new_empty(number, side**2, types, *shape, dtype=dtype) for _ in range(2)),
        *(call.poses.new_empty(number, types, *shape, dtype=dtype) for _ in range(2)),
    )


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Run all blocks forward; return parents, and the stats of all iterations for the way back."""
    call, (poses, activations, *kept) = _call(arguments), _empty(*arguments)
    side, positions = call.poses.shape[-1], call.fields.num_parents
    with torch.no_grad(), without_autocast(call.poses):
        for images, block in blocks_of(call, kept[0].dtype):
            share, stats = block.first_share(), None
            for step, inverse_temperature in enumerate(call.options.lambdas()):
                if stats is not None:
                    share = block.expect(stats, "share")
                stats = block.maximise(share, inverse_temperature)
                for all_of, own in zip(kept, stats, strict=True):
                    all_of[step, ..., images, :] = own.unflatten(-1, (-1, positions))
            assert stats is not None  # there is an iteration
            mean = stats.mean.unflatten(0, (side, side)).unflatten(-1, (-1, positions))
            poses[images] = mean.permute(3, 4, 2, 0, 1)
            activations[images] = stats.logit.sigmoid().unflatten(-1, (-1, positions)).permute(1, 2, 0)
    return poses, activations, *kept


def _backward(d_poses: Tensor, d_activations: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Run all blocks backward; return gradients of all tensors, of offsets zeros.

    arguments: the stats of all iterations, then those of `_forward`.
    """
    kept, call = Stats(*arguments[:4]), _call(arguments[4:])
    dtype = kept.mean.dtype
    side = call.poses.shape[-1]
    num_children, types = call.fields.size * call.weights.shape[1], call.weights.shape[2]
    into = Gradients(
        kept.mean.new_zeros(num_children, side, types, side),
        kept.mean.new_zeros(types),
        kept.mean.new_zeros(types),
    )
    of_poses, of_activations = (each.new_empty(each.shape) for each in (call.poses, call.activations))
    with torch.no_grad(), without_autocast(call.poses):
        for images, block in blocks_of(call, dtype):
            stats = [
                Stats(*(each[step, ..., images, :].flatten(-2) for each in kept))
                for step in range(call.options.iterations)
            ]
            d_mean = d_poses[images].to(dtype).permute(3, 4, 2, 0, 1).flatten(-2).flatten(0, 1)
            own = stats[-1].logit.sigmoid()
            d_logit = d_activations[images].to(dtype).permute(2, 0, 1).flatten(-2) * own * (1 - own)
            found = block.gradients(stats, d_mean.contiguous(), d_logit, into)
            of_poses[images], of_activations[images] = found
    d_weights = into.weights.unflatten(0, (call.fields.size, -1)).permute(0, 1, 3, 4, 2)
    if call.fields.shared:
        d_weights = d_weights.sum(0, keepdim=True)
    return (
        of_poses,
        of_activations,
        d_weights.to(call.weights.dtype).contiguous(),
        into.beta_u.to(call.beta_u.dtype),
        into.beta_a.to(call.beta_a.dtype),
        of_poses.new_empty(0) if call.offsets is None else torch.zeros_like(call.offsets).contiguous(),
    )


def blocks_of(call: EMCall, dtype: torch.dtype) -> Iterator[tuple[slice, Block]]:
    """Yield images and their block, in scratch memory that the next block takes over."""
    sizes = Sizes.of(call, dtype.itemsize)
    scratch = Scratch(dtype, call.poses.device)
    for images in slices(len(call.poses), sizes.images):
        yield images, Block(call, images, scratch, sizes, dtype)


_route = own_backward(
    "route_em_streamed",
    _forward,
    _backward,
    _empty,
    refusing("streamed EM routing is differentiable once, backward; choose backend='reference'"),
    Signature(
        ("poses", "activations", "weights", "beta_u", "beta_a", "offsets?"),
        others=f"{FIELDS_SCHEMA}, {EM_SCHEMA}",
        num_results=2,
        num_kept=4,
    ),
)
