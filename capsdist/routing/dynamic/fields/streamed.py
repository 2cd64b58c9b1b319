"""Dynamic routing between grids without stored votes: the passes of `streamed` over patches of the grid.

Neither votes nor patches are kept for the backward pass: the arguments, and R B P J E totals. The mathematics
is at the head of `capsdist.routing.dynamic.streamed`; `stream` says what differs.

Shape letters: as `stream`; R iterations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from capsdist.ops import squash
from capsdist.routing.common.autograd import BackwardPass, Pass, refusing, way
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.common.tiling import Pieces
from capsdist.routing.dynamic.fields.call import FieldCall
from capsdist.routing.dynamic.fields.stream import FieldStream
from capsdist.routing.dynamic.streamed_passes import Gradients, add_gradients, add_totals, parts

__all__ = ["route_fields_streamed"]

_refuse = refusing(
    "streamed routing between grids is differentiable once, backward; choose backend='reference'"
)


def route_fields_streamed(call: FieldCall) -> Tensor:
    """Return the parent poses [B, P, J, E], in the dtype of `child_poses`.

    Computed in fp32, float64 for float64, also under autocast.
    """
    operands = call.child_poses, call.packed_weights, call.bias, call.log_priors
    parent_poses, _ = way(_Route, _forward)(*operands, call.fields, call.competition, call.options)
    return parent_poses


def _stream(call: FieldCall, rows: int) -> FieldStream:
    packed = call.unpacked.flatten(3) if call.fields.shared else call.packed_weights
    dtype = wide_dtype(call.child_poses)
    given = call.child_poses, packed, call.log_priors, dtype, call.options, call.fields, call.competition
    return FieldStream(*given, rows=rows)


def _call(arguments: tuple[Any, ...]) -> FieldCall:
    child_poses, packed_weights, bias, log_priors, fields, competition, options = arguments
    return FieldCall(child_poses, packed_weights, fields, options, competition, bias, log_priors)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Run all blocks forward; return parent_poses [B, P, J, E], and the totals [R, J, B P, E] to keep."""
    call = _call(arguments)
    num_images, (num_parents, parent_dim) = len(call.child_poses), call.packed_weights.shape[:2]
    num_pairs, dtype = num_images * call.fields.num_parents, wide_dtype(call.child_poses)
    parent_poses = call.child_poses.new_empty(num_pairs, num_parents, parent_dim)
    shape = call.options.iterations, num_parents, num_pairs, parent_dim
    totals = call.child_poses.new_zeros(shape, dtype=dtype)
    wide_bias = None if call.bias is None else call.bias.to(dtype)
    with torch.no_grad(), without_autocast(call.child_poses):
        stream = _stream(call, rows=1)
        for block, patches in stream.blocks():
            add_totals(stream, patches, wide_bias, totals[:, :, block])
            last, result = totals[-1, :, block], parent_poses[block].transpose(0, 1)
            for part in parts(last):
                result[part] = squash(last[part])
    return parent_poses.unflatten(0, (num_images, -1)), totals


def _backward(grad: Tensor, totals: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
    """Run all blocks backward; return gradients of poses, weights, bias and priors."""
    call = _call(arguments)
    d_poses, bias, priors = torch.empty_like(call.child_poses), call.bias, call.log_priors
    num_places = call.fields.size
    weights_shape = (*call.packed_weights.shape[:3], call.child_poses.shape[2] * num_places)
    d_weights, d_bias = totals.new_zeros(weights_shape), totals.new_zeros(weights_shape[:2])
    d_priors = None if priors is None else totals.new_zeros(priors.T.shape)
    positions = call.fields.num_parents
    with torch.no_grad(), without_autocast(call.child_poses):
        stream = _stream(call, rows=2)
        pieces = Pieces(stream.scratch, "d_weights", d_weights, sums=True)
        grads = grad.flatten(0, 1)
        for block, patches in stream.blocks():
            d_patches = stream.scratch.take("d_patches", *patches.shape).zero_()
            found = Gradients(d_patches, pieces, d_priors, d_bias)
            add_gradients(stream, patches, totals[:, :, block], grads[block].transpose(0, 1), found)
            d_poses[block.start // positions : block.stop // positions] = stream.to_children(d_patches)
    if call.fields.shared:
        d_weights = d_weights.unflatten(3, (-1, num_places)).sum(4)
    return (
        d_poses,
        d_weights.to(call.packed_weights.dtype),
        None if bias is None else d_bias.to(bias.dtype),
        None if priors is None or d_priors is None else d_priors.T.to(priors.dtype),
    )


class _Route(Pass):
    jvp = staticmethod(_refuse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Save the arguments themselves, and the totals."""
        ctx.mark_non_differentiable(output[1])
        ctx.others = inputs[4:]
        ctx.save_for_backward(*inputs[:4], output[1])

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        """Run forward."""
        return _forward(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients."""
        *operands, totals = ctx.saved_tensors
        found = way(_RouteBackward, _backward)(grads[0], totals, *operands, *ctx.others)
        return *found, None, None, None


class _RouteBackward(BackwardPass):
    backward = jvp = staticmethod(_refuse)

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor | None, ...]:
        """Run backward."""
        return _backward(*arguments)
