"""Trace routing: how far logits move, how undecided children are, which parents get them.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, R iterations; n images
of a chunk, m children of a tile, j parents of a piece.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from capsdist.routing.common.autograd import refuse_transforms
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.dynamic.api import check_layout
from capsdist.routing.dynamic.backends import check_call
from capsdist.routing.dynamic.options import RoutingCall, RoutingOptions
from capsdist.routing.dynamic.streamed_passes import Stream, add_squashed, add_totals, dot, pair_products

__all__ = ["Trace", "trace_routing"]


class Trace(NamedTuple):
    """What each iteration did to each image; a mean over images is the mean over the batch.

    logit_change [R, B]: mean over children and parents of how far the iteration's agreement moves a logit,
        |votes_ij . v_j| (figure A.1 of the paper); only one more iteration would use that of the last.
    coupling_entropy [R, B]: mean over children of the entropy of their coupling, in nats: ln J if they are
        undecided (ln(J + 1) with none-of-the-above, which counts as a choice), 0 if each has one parent.
    parent_shares [R, B, J]: the share of all children that a parent gets; their sum is 1, with
        none-of-the-above 1 less its share.
    """

    logit_change: Tensor
    coupling_entropy: Tensor
    parent_shares: Tensor


@torch.no_grad()
def trace_routing(
    child_poses: Tensor,
    packed_weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
    none_of_the_above: bool = False,
) -> Trace:
    """Route as `route_packed` does and return what each iteration did, in fp32 (float64 in float64).

    A function of its own, so that routing itself pays nothing for it. After an iteration one more pass
    over the tiles rebuilds its coupling and its agreement, by one product with both as rows.

    Args:
        child_poses: [B, I, D].
        packed_weights: [J, E, D, I], see `packing`.
        iterations: r >= 1.
        bias: [J, E], or None.
        log_priors: [I, J], or None.
        none_of_the_above: one more logit, always 0, takes part in the softmax.

    Raises:
        ShapeError: as `route_packed`.
        NotImplementedError: under torch.func or forward mode, where what it returns would pass for constant.

    Cost: 4 R - 1 matrix products of 2 B I J D E FLOP, no gradients; memory as the streamed backend.

    Example:
        >>> trace = trace_routing(torch.zeros(2, 6, 8), torch.zeros(10, 16, 8, 6), iterations=3)
        >>> round(float(trace.coupling_entropy[0, 0]), 4)  # ln 10
        2.3026
    """
    refuse_transforms("trace_routing")
    check_layout(child_poses, packed_weights, packed=True)
    options = RoutingOptions(iterations, none_of_the_above)
    check_call(RoutingCall(child_poses, packed_weights, options, bias, log_priors))
    num_children, dtype = child_poses.shape[1], wide_dtype(child_poses)
    with without_autocast(child_poses):
        stream = Stream(child_poses, packed_weights, log_priors, dtype, options, rows=2)
        sums = child_poses.new_zeros(
            (options.iterations, stream.num_parents + 2, len(child_poses)), dtype=dtype
        )
        for block, poses in stream.blocks():
            _add_block(stream, poses, None if bias is None else bias.to(dtype), sums[:, :, block])
    sums /= num_children
    change, entropy, shares = sums.split((1, 1, stream.num_parents), dim=1)
    return Trace(change[:, 0] / stream.num_parents, entropy[:, 0], shares.transpose(1, 2).contiguous())


def _add_block(stream: Stream, poses: Tensor, bias: Tensor | None, sums: Tensor) -> None:
    """Route a block of poses [b, D, I], and add its sums over children to sums [R, 2 + J, b].

    The first row is the agreement's, over all parents too, then the entropy's, then one for each parent.
    """
    iterations, _, num_images = sums.shape
    parent_dim = stream.parent_dim
    totals = sums.new_zeros((iterations, stream.num_parents, num_images, parent_dim))
    add_totals(stream, poses, bias, totals)
    state = torch.zeros_like(totals[0])  # V before the iteration
    for total, found in zip(totals, sums, strict=True):
        pose = torch.zeros_like(total)
        add_squashed(pose, total)
        for tile, tile_poses in stream.tiles(poses):
            _add_tile(stream, tile, tile_poses, state, pose, found)
        state += pose


def _add_tile(stream: Stream, tile: slice, poses: Tensor, state: Tensor, pose: Tensor, sums: Tensor) -> None:
    """Add the sums of one iteration over the children of a tile; state and pose are [J, b, E]."""
    for chunk, u in stream.chunks(poses):
        # Three planes: logits, to be replaced by their share of the entropy; agreement; coupling.
        planes = stream.scratch.take("factors", 3, stream.num_logits, len(u), u.shape[2])
        pairs = planes[:2, : stream.num_parents].transpose(0, 1)  # [J, 2, n, m]
        for parents, weights in stream.pieces(tile):
            _, products = pair_products(stream, state[parents, chunk], pose[parents, chunk], weights)
            dot(products.view(len(weights), 2, *u.shape), u, out=pairs[parents])
        stream.couple(tile, planes[0], out=planes[2])
        sums[2:, chunk] += planes[2, : stream.num_parents].sum(2)
        sums[0, chunk] += planes[1, : stream.num_parents].abs_().sum((0, 2))
        torch.special.entr(planes[2], out=planes[0])
        sums[1, chunk] += planes[0].sum((0, 2))
