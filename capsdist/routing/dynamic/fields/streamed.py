"""Dynamic routing between grids without stored votes, with its own backward pass.

Neither votes nor patches are kept for the backward pass: the arguments, and R B P J E totals. The mathematics
is at the head of `capsdist.routing.dynamic.streamed`; `passes` says what differs.

Shape letters: as `passes`; R iterations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from capsdist.ops import squash
from capsdist.routing.common.autograd import BackwardPass, Pass, refusing, way
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.common.tiling import Pieces, Scratch, slices
from capsdist.routing.dynamic.fields.call import FieldCall
from capsdist.routing.dynamic.fields.passes import Block, Gradients, plan_cuts

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


def _blocks(call: FieldCall, dtype: torch.dtype, rows: int) -> Iterator[tuple[slice, slice, Block]]:
    """Yield images, their pairs of image and position, and the block of them."""
    packed = call.unpacked.flatten(3) if call.fields.shared else call.packed_weights
    scratch = Scratch(dtype, call.child_poses.device)
    weights = Pieces(scratch, "weights", packed)
    cuts, positions = plan_cuts(call, rows=rows, itemsize=dtype.itemsize), call.fields.num_parents
    for images in slices(len(call.child_poses), cuts.images):
        stop = min(images.stop, len(call.child_poses))
        pairs = slice(images.start * positions, stop * positions)
        yield images, pairs, Block(call, images, scratch, weights, cuts)


def _call(arguments: tuple[Any, ...]) -> FieldCall:
    child_poses, packed_weights, bias, log_priors, fields, competition, options = arguments
    return FieldCall(child_poses, packed_weights, fields, options, competition, bias, log_priors)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Run all blocks forward; return parent_poses [B, P, J, E], and the totals [R, J, E, B P] to keep."""
    call = _call(arguments)
    num_images, (num_parents, parent_dim) = len(call.child_poses), call.packed_weights.shape[:2]
    num_pairs, dtype = num_images * call.fields.num_parents, wide_dtype(call.child_poses)
    parent_poses = call.child_poses.new_empty(num_pairs, num_parents, parent_dim)
    shape = call.options.iterations, num_parents, parent_dim, num_pairs
    totals = call.child_poses.new_zeros(shape, dtype=dtype)
    bias = None if call.bias is None else call.bias.to(dtype)
    with torch.no_grad(), without_autocast(call.child_poses):
        for _, pairs, block in _blocks(call, dtype, rows=1):
            own = totals[..., pairs].contiguous()
            block.totals(own, bias)
            totals[..., pairs] = own
            parent_poses[pairs] = squash(own[-1], dim=1).permute(2, 0, 1)
    return parent_poses.unflatten(0, (num_images, -1)), totals


def _backward(grad: Tensor, totals: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
    """Run all blocks backward; return gradients of poses, weights, bias and priors."""
    call = _call(arguments)
    d_poses, bias, priors = torch.empty_like(call.child_poses), call.bias, call.log_priors
    num_places = call.fields.size
    weights_shape = (*call.packed_weights.shape[:3], call.child_poses.shape[2] * num_places)
    d_weights, d_bias = totals.new_zeros(weights_shape), totals.new_zeros(weights_shape[:2])
    d_priors = None if priors is None else totals.new_zeros(priors.T.shape)
    pieces = Pieces(Scratch(totals.dtype, totals.device), "d_weights", d_weights, sums=True)
    into, grads = Gradients(pieces, d_bias, d_priors), grad.flatten(0, 1)
    with torch.no_grad(), without_autocast(call.child_poses):
        for images, pairs, block in _blocks(call, totals.dtype, rows=2):
            own = grads[pairs].permute(1, 2, 0).to(totals.dtype).contiguous()
            d_poses[images] = block.gradients(totals[..., pairs].contiguous(), own, into)
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
