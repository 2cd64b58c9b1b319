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
from capsdist.routing.common.autograd import refusing
from capsdist.routing.common.fields import FIELDS_SCHEMA, fields_of
from capsdist.routing.common.operators import Signature, own_backward
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.common.tiling import Pieces, Scratch, slices
from capsdist.routing.dynamic.fields.call import FieldCall
from capsdist.routing.dynamic.fields.passes import Block, Gradients, plan_cuts
from capsdist.routing.dynamic.options import RoutingOptions

__all__ = ["route_fields_streamed"]


def route_fields_streamed(call: FieldCall) -> Tensor:
    """Return the parent poses [B, P, J, E], in the dtype of `child_poses`.

    Computed in fp32, float64 for float64, also under autocast.
    """
    operands = call.child_poses, call.packed_weights, call.bias, call.log_priors
    options = call.options
    others = call.competition, options.iterations, options.none_of_the_above, options.gradient
    parent_poses, _ = _route(*operands, *call.fields.numbers, *others)
    return parent_poses


def _call(arguments: tuple[Any, ...]) -> FieldCall:
    """Return the call of the arguments of a pass: four tensors, numbers of fields, and options."""
    child_poses, packed_weights, bias, log_priors = arguments[:4]
    fields, competition = fields_of(*arguments[4:9]), arguments[9]
    options = RoutingOptions(*arguments[10:])
    return FieldCall(child_poses, packed_weights, fields, options, competition, bias, log_priors)


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


def _empty(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Return memory for parent_poses [B, P, J, E] and totals [R, J, E, B P]."""
    call = _call(arguments)
    positions, (num_parents, parent_dim) = call.fields.num_parents, call.packed_weights.shape[:2]
    poses, num_images = call.child_poses, call.child_poses.shape[0]
    shape = call.options.iterations, num_parents, parent_dim, num_images * positions
    return (
        poses.new_empty(num_images, positions, num_parents, parent_dim),
        poses.new_empty(shape, dtype=wide_dtype(poses)),
    )


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Run all blocks forward; return the parent poses, and the totals to keep."""
    call, (parent_poses, totals) = _call(arguments), _empty(*arguments)
    of_pairs, dtype = parent_poses.flatten(0, 1), totals.dtype
    totals.zero_()
    bias = None if call.bias is None else call.bias.to(dtype)
    with torch.no_grad(), without_autocast(call.child_poses):
        for _, pairs, block in _blocks(call, dtype, rows=1):
            own = totals[..., pairs].contiguous()
            block.totals(own, bias)
            totals[..., pairs] = own
            of_pairs[pairs] = squash(own[-1], dim=1).permute(2, 0, 1)
    return parent_poses, totals


def _backward(grad: Tensor, totals: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Run all blocks backward; return gradients of poses, weights, bias and priors."""
    call = _call(arguments)
    bias, priors = call.bias, call.log_priors
    d_poses = call.child_poses.new_empty(call.child_poses.shape)
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
        d_poses.new_empty(0) if bias is None else d_bias.to(bias.dtype),
        d_poses.new_empty(0)
        if priors is None or d_priors is None
        else d_priors.T.to(priors.dtype).contiguous(),
    )


_route = own_backward(
    "route_fields_streamed",
    _forward,
    _backward,
    _empty,
    refusing("streamed routing between grids is differentiable once, backward; choose backend='reference'"),
    Signature(
        ("child_poses", "packed_weights", "bias?", "log_priors?"),
        others=f"{FIELDS_SCHEMA}, str competition, int iterations, bool none_of_the_above, str gradient",
        num_kept=1,
    ),
)
