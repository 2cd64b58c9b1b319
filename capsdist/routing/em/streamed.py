"""EM routing without stored votes: the numbers of `reference` in a fraction of its memory.

The backward pass needs the arguments and what each iteration makes of the parents: mean, variance, total and
logit, 2 H + 2 numbers a parent. Votes, assignments and their gradients are built again, a block of images at
a time (`streamed_passes`). With S_j = sum_i r_ij, r_ij = R_ij a_i, D = V_ij - mean_j, per dimension h:

    M-step  mean = sum_i r V / S,  var = sum_i r D^2 / S + floor,
            x = lambda (beta_a - sum_h (beta_u + log sd) S)
    E-step  L_ij = log sigmoid(x_j) - sum_h (D^2 / (2 var) + log sd),  R_ij = softmax of L over i's parents

    backward, M-step: with dvar and dS of the cost added,
        dr_ij = sum_h D (dmean + dvar D) / S + dS - sum_h dvar (var - floor) / S
        dV_ij += r_ij (dmean + 2 dvar D) / S
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

from capsdist.routing.common.autograd import BackwardPass, Pass, refusing, way
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.common.tiling import Scratch, slices
from capsdist.routing.em.options import EMCall
from capsdist.routing.em.streamed_passes import Block, Gradients, Sizes, Stats

__all__ = ["route_em_streamed"]

_refuse = refusing("streamed EM routing is differentiable once, backward; choose backend='reference'")


def route_em_streamed(call: EMCall) -> tuple[Tensor, Tensor]:
    """Return poses [B, P, C, S, S] and activations [B, P, C] of the parents, in the dtypes of the children's.

    Computed in fp32, float64 for float64, also under autocast. Kept for the backward pass: the arguments and
    R B P C (2 H + 2) numbers.
    """
    operands = call.poses, call.activations, call.weights, call.beta_u, call.beta_a, call.offsets
    poses, activations, *_ = way(_Route, _forward)(*operands, call.fields, call.options)
    return poses, activations


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Run all blocks forward; return parents, and the stats of all iterations for the way back."""
    call = _call(arguments)
    dtype = wide_dtype(call.poses)
    side, types = call.poses.shape[-1], call.weights.shape[2]
    shape = len(call.poses), call.fields.num_parents
    poses = call.poses.new_empty(*shape, types, side, side)
    activations = call.activations.new_empty(*shape, types)
    number = call.options.iterations
    kept = Stats(
        *(poses.new_empty(number, side**2, types, *shape, dtype=dtype) for _ in range(2)),
        *(poses.new_empty(number, types, *shape, dtype=dtype) for _ in range(2)),
    )
    with torch.no_grad(), without_autocast(call.poses):
        for images, block in _blocks(call, dtype):
            share, stats = block.first_share(), None
            for step, inverse_temperature in enumerate(call.options.lambdas()):
                if stats is not None:
                    share = block.expect(stats, "share")
                stats = block.maximise(share, inverse_temperature)
                for all_of, own in zip(kept, stats, strict=True):
                    all_of[step, ..., images, :] = own.unflatten(-1, (-1, shape[1]))
            assert stats is not None  # there is an iteration
            mean = stats.mean.unflatten(0, (side, side)).unflatten(-1, (-1, shape[1]))
            poses[images] = mean.permute(3, 4, 2, 0, 1)
            activations[images] = stats.logit.sigmoid().unflatten(-1, (-1, shape[1])).permute(1, 2, 0)
    return poses, activations, *kept


def _backward(d_poses: Tensor, d_activations: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Run all blocks backward; return gradients of poses, activations, weights, beta_u and beta_a.

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
    of_poses, of_activations = torch.empty_like(call.poses), torch.empty_like(call.activations)
    with torch.no_grad(), without_autocast(call.poses):
        for images, block in _blocks(call, dtype):
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
    )


def _call(arguments: tuple[Any, ...]) -> EMCall:
    """Return the call of the arguments of a pass: six tensors, fields and options."""
    poses, activations, weights, beta_u, beta_a, offsets, fields, options = arguments
    return EMCall(poses, activations, weights, beta_u, beta_a, fields, options, offsets)


def _blocks(call: EMCall, dtype: torch.dtype) -> Iterator[tuple[slice, Block]]:
    sizes = Sizes.of(call, dtype.itemsize)
    scratch = Scratch(dtype, call.poses.device)
    for images in slices(len(call.poses), sizes.images):
        yield images, Block(call, images, scratch, sizes, dtype)


class _Route(Pass):
    jvp = staticmethod(_refuse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save the arguments themselves, and the stats."""
        ctx.mark_non_differentiable(*output[2:])
        ctx.fields, ctx.options = inputs[6:]
        ctx.save_for_backward(*inputs[:6], *output[2:])

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        """Run forward."""
        return _forward(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients."""
        operands, kept = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        found = way(_RouteBackward, _backward)(*grads[:2], *kept, *operands, ctx.fields, ctx.options)
        return *found, None, None, None


class _RouteBackward(BackwardPass):
    backward = jvp = staticmethod(_refuse)

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        """Run backward."""
        return _backward(*arguments)
