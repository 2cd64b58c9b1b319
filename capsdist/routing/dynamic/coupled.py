"""One pass of routing by a given state: votes coupled by their agreement with it, and summed, without votes.

With a state V_j of each parent, b_ij = votes_ij . V_j, c_ij = softmax over j of b_ij, and the result is
s_j = sum_i c_ij votes_ij. Dynamic routing makes each V of the passes before; algorithms with another rule for
it, or another function after the sum, are made of this pass. Its gradients are those of an iteration in
`streamed`, where the mathematics is; here they go to the state as well.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from torch import Tensor

from capsdist.routing.common.autograd import refusing
from capsdist.routing.common.operators import Signature, own_backward
from capsdist.routing.common.precision import without_autocast
from capsdist.routing.common.tiling import Pieces
from capsdist.routing.dynamic.options import RoutingOptions
from capsdist.routing.dynamic.streamed_passes import (
    Gradients,
    Stream,
    add_coupled_gradients,
    add_coupled_total,
)

__all__ = ["sum_coupled"]

_OPTIONS = RoutingOptions(1)


def sum_coupled(child_poses: Tensor, packed_weights: Tensor, states: Tensor) -> Tensor:
    """Return the sums over children of votes, coupled by their agreement with `states`.

    Args:
        child_poses: [B, I, D], best laid out as [B, D, I] in memory.
        packed_weights: [J, E, D, I], best the Parameter itself, which is what is kept.
        states: [B, J, E] V_j.

    Returns:
        [B, J, E] s_j, in the dtype of `states`, fp32 or float64, which it computes in, also under autocast.

    Cost: 2 matrix products of 2 B I J D E FLOP forward, 5 backward. Kept: the arguments. Scratch: bounded,
    see `cuts`.

    Raises:
        NotImplementedError: a second derivative is asked for.
    """
    return _run(child_poses, packed_weights, states)


def _stream(child_poses: Tensor, packed_weights: Tensor, states: Tensor, rows: int) -> Stream:
    return Stream(child_poses, packed_weights, None, states.dtype, _OPTIONS, rows)


def _forward(child_poses: Tensor, packed_weights: Tensor, states: Tensor) -> Tensor:
    sums = states.new_zeros(states.transpose(0, 1).shape)
    with without_autocast(child_poses):
        stream = _stream(child_poses, packed_weights, states, 1)
        for block, poses in stream.blocks():
            state = states[block].transpose(0, 1)
            for tile, tile_poses in stream.tiles(poses):
                add_coupled_total(stream, tile, tile_poses, state, sums[:, block])
    return sums.transpose(0, 1).contiguous()


def _backward(
    grad: Tensor,
    child_poses: Tensor,
    packed_weights: Tensor,
    states: Tensor,
    want_poses: bool,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of poses [B, D, I], weights and states [B, J, E]; what is not wanted is empty."""
    d_poses = child_poses.new_zeros(child_poses.transpose(1, 2).shape) if want_poses else None
    d_weights = states.new_zeros(packed_weights.shape) if want_weights else None
    d_states = states.new_zeros(states.transpose(0, 1).shape)
    no_bias = states.new_zeros(())
    with without_autocast(child_poses):
        stream = _stream(child_poses, packed_weights, states, 2)
        pieces = None if d_weights is None else Pieces(stream.scratch, "d_weights", d_weights, sums=True)
        for block, poses in stream.blocks():
            state, d_total = states[block].transpose(0, 1), grad[block].transpose(0, 1)
            with stream.scratch.adding_to("d_poses of block", d_poses, block) as d_block:
                found = Gradients(d_block, pieces, None, no_bias)
                for tile, tile_poses in stream.tiles(poses):
                    with stream.scratch.adding_to("d_poses", d_block, (..., tile)) as d_u:
                        add_coupled_gradients(
                            stream, tile, tile_poses, state, d_total, d_states[:, block], d_u, found
                        )
            if pieces is not None:
                pieces.flush()
    return (
        child_poses.new_empty(0) if d_poses is None else d_poses,
        child_poses.new_empty(0) if d_weights is None else d_weights.to(packed_weights.dtype),
        d_states.transpose(0, 1).contiguous(),
    )


def _empty(child_poses: Tensor, packed_weights: Tensor, states: Tensor) -> Tensor:
    """Return memory for what `_forward` returns."""
    return states.new_empty(states.shape)


_run = own_backward(
    "sum_coupled",
    _forward,
    _backward,
    _empty,
    refusing("routing without votes is differentiable once, backward; choose backend='reference'"),
    Signature(
        ("child_poses", "packed_weights", "states"),
        transposed=("child_poses",),
        on_demand=("child_poses", "packed_weights"),
    ),
    function=None,
)
