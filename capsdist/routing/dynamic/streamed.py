"""Routing by agreement without votes: the numbers of `reference` in a fraction of its time and memory.

After t iterations the paper's logits are b_ij = votes_ij . V_j, where V = v_1 + ... + v_t is the sum of all
parent poses so far. So V [J, B, E] is all that one iteration hands to the next, and whatever has a child AND
a parent index is rebuilt, a piece at a time, by matrix products with the weights:

    agreement   b_ij = u_i . (W_ij V_j)            product V x weights, then a dot product over D
    coupling    c_ij = softmax over j of b_ij
    totals      s_j  = sum_i W_ij^T (c_ij u_i)     product (coupling x poses) x weights^T

The first iteration has V = 0, hence a uniform coupling: one matrix product over all children and parents.
The backward pass rebuilds the same pieces, iteration by iteration from the last to the first. With g the
gradient of the result and dV the gradient that V carries back (0 at the end):

    ds_j  = squash'(s_j) (g_j in the last iteration, dV_j before)
    G_ij  = W_ij V_j,  H_ij = W_ij ds_j            one product with both as rows
    c_ij  = softmax_j(u_i . G_ij),  dc_ij = u_i . H_ij,  db_ij = c_ij (dc_ij - sum_j c_ij dc_ij)
    du_i += sum_j (db_ij G_ij + c_ij H_ij)
    dW_ij += (db_ij u_i) V_j^T + (c_ij u_i) ds_j^T   one product, summed over images
    dV_j += sum_i W_ij^T (db_ij u_i)

With log priors b0_ij, learned logits to start from, b_ij = b0_ij + votes_ij . V_j, the first iteration is
like every other, and db0_ij = db_ij summed over images and iterations.

Exact through all iterations. The passes are in `stream`; here is what autograd, compilers and
torch.func see of them.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, R iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from capsdist.ops import squash
from capsdist.routing.common.autograd import (
    BackwardPass,
    Pass,
    is_recorded,
    is_transformed,
    may_be_dual,
    refusing,
)
from capsdist.routing.common.operators import Signature, own_backward
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.common.tiling import Pieces
from capsdist.routing.dynamic.options import Gradient, RoutingCall, RoutingOptions
from capsdist.routing.dynamic.streamed_passes import Gradients, Stream, add_gradients, add_totals, parts

__all__ = ["RECORDED", "StreamedBackward", "route_streamed", "streamed_refusal"]

RECORDED = "torch.jit.trace and ONNX record the reference only"
"""Why a backend with an own backward pass is not taken where `is_recorded`."""

_refuse = refusing(
    "streamed routing is differentiable once, backward; for other derivatives choose "
    "backend='reference', with no children split over ranks"
)


def route_streamed(call: RoutingCall, *, group_name: str | None = None) -> Tensor:
    """Return the parent poses of Procedure 1 (paper, section 2) without ever storing votes.

    Args:
        call: `child_poses` are not copied if their memory is laid out as [B, D, I] already. `packed_weights`
            are best the Parameter itself: it is what is saved for the backward pass, and ZeRO-3 can release
            it (a view or a copy of it would stay in memory).
        group_name: of the process group whose ranks hold other children of the same images, or None: sums
            over children go over its ranks as well, see `parallel`.

    Returns:
        [B, J, E] in the dtype of `child_poses`. Float64 is computed in float64, everything else in fp32,
        also under autocast.

    Cost: 2R - 1 matrix products of 2 B I J D E FLOP forward, 5R - 3 backward, 5R with log priors. Kept
    for the backward pass: the arguments and R B J E numbers. Scratch: bounded, see `cuts`; backward, for
    weights or priors of 16 bits 4 bytes a number more, because their gradient is summed in fp32. Under
    `torch.vmap` a dimension of the poses alone is more images; with one of other operands, and in the
    backward pass, every element is a call.

    Raises:
        NotImplementedError: a second derivative, or one of forward mode, is asked for; it is differentiable
            once, backward. Or `streamed_refusal`.
    """
    refusal = streamed_refusal(call)
    if refusal is not None:
        raise NotImplementedError(f"{refusal}; choose backend='reference'")
    operands = call.child_poses, call.packed_weights, call.bias, call.log_priors
    options = call.options
    others = options.iterations, options.none_of_the_above, options.gradient, group_name
    parent_poses, _ = _route(*operands, *others)
    return parent_poses


def streamed_refusal(call: RoutingCall) -> str | None:
    """Return in a few words why the backend cannot be taken here for this call, or None."""
    if is_recorded():
        return RECORDED
    if torch.compiler.is_compiling():
        # Compilers see operators only, whose result passes for a constant there.
        wrong = "inside of a compiler torch.func and forward mode differentiate the reference only"
        return wrong if is_transformed() else None
    dual = may_be_dual(call.child_poses, call.packed_weights, call.bias, call.log_priors)
    return "forward mode differentiates the reference only" if dual else None


def _forward(
    child_poses: Tensor,
    packed_weights: Tensor,
    bias: Tensor | None,
    log_priors: Tensor | None,
    iterations: int,
    none_of_the_above: bool,
    gradient: str,
    group_name: str | None,
) -> tuple[Tensor, Tensor]:
    """Run all blocks forward; return parent_poses [B, J, E], and totals [R, J, B, E] for the way back."""
    parent_poses, totals = _empty(child_poses, packed_weights, bias, log_priors, iterations)
    totals.zero_()
    wide_bias = None if bias is None else bias.to(totals.dtype)
    options = RoutingOptions(iterations, none_of_the_above, cast(Gradient, gradient))
    given = child_poses, packed_weights, log_priors, totals.dtype, options
    with without_autocast(child_poses):
        stream = Stream(*given, rows=1, reduce=_sum_over(group_name))
        for block, poses in stream.blocks():
            add_totals(stream, poses, wide_bias, totals[:, :, block])
            last, result = totals[-1, :, block], parent_poses[block].transpose(0, 1)
            for part in parts(last):
                result[part] = squash(last[part])
    return parent_poses, totals


def _empty(
    child_poses: Tensor, packed_weights: Tensor, bias: Any, log_priors: Any, iterations: int, *_: Any
) -> tuple[Tensor, Tensor]:
    """Return memory for the results, in the dtypes that they have: float64 in float64, sums else in fp32."""
    num_images, (num_parents, parent_dim) = child_poses.shape[0], packed_weights.shape[:2]
    return (
        child_poses.new_empty((num_images, num_parents, parent_dim)),
        child_poses.new_empty(
            (iterations, num_parents, num_images, parent_dim), dtype=wide_dtype(child_poses)
        ),
    )


def _sum_over(group_name: str | None) -> Callable[[Tensor], None] | None:
    """Return what adds up a tensor in place over the ranks of a group, found by name as torch does it."""
    if group_name is None:
        return None
    from torch._C._distributed_c10d import _resolve_process_group  # not in every build of torch

    group = _resolve_process_group(cast(Any, group_name))

    def reduce(sums: Tensor) -> None:
        dist.all_reduce(sums, group=group)

    return reduce


def _backward(
    grad: Tensor,
    totals: Tensor,
    child_poses: Tensor,
    packed_weights: Tensor,
    bias: Tensor | None,
    log_priors: Tensor | None,
    iterations: int,
    none_of_the_above: bool,
    gradient: str,
    group_name: str | None,
    want_poses: bool,
    want_weights: bool,
    want_priors: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run all blocks backward; return gradients of poses [B, D, I], weights, bias and priors [J, I].

    Each in the dtype of its operand; what is not wanted is empty. That of the bias costs nothing.
    """
    d_poses = child_poses.new_zeros(child_poses.transpose(1, 2).shape) if want_poses else None
    d_weights = totals.new_zeros(packed_weights.shape) if want_weights else None
    priors = log_priors if want_priors else None
    d_priors = None if priors is None else totals.new_zeros(priors.T.shape)
    d_bias = totals.new_zeros(packed_weights.shape[:2])
    options = RoutingOptions(iterations, none_of_the_above, cast(Gradient, gradient))
    given = child_poses, packed_weights, log_priors, totals.dtype, options
    with without_autocast(child_poses):
        stream = Stream(*given, rows=2, reduce=_sum_over(group_name))
        pieces = None if d_weights is None else Pieces(stream.scratch, "d_weights", d_weights, sums=True)
        for block, poses in stream.blocks():
            with stream.scratch.adding_to("d_poses of block", d_poses, block) as d_block:
                found = Gradients(d_block, pieces, d_priors, d_bias)
                add_gradients(stream, poses, totals[:, :, block], grad[block].transpose(0, 1), found)
    return (
        child_poses.new_empty(0) if d_poses is None else d_poses,
        child_poses.new_empty(0) if d_weights is None else d_weights.to(packed_weights.dtype),
        child_poses.new_empty(0) if bias is None else d_bias.to(bias.dtype),
        child_poses.new_empty(0) if priors is None or d_priors is None else d_priors.to(priors.dtype),
    )


class _Batched(Pass):
    """A pass of routing, which takes one more dimension of the poses alone for more images."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        """Route all elements in one call, or each by itself."""
        child_poses, *rest = arguments
        dim, *dims = in_dims
        if dim is None or dims != [None] * len(dims):
            return super().vmap(info, in_dims, *arguments)
        poses = child_poses.movedim(dim, 0)
        parent_poses, totals = cls.apply(poses.flatten(0, 1), *rest)
        sizes = poses.shape[:2]
        return (parent_poses.unflatten(0, sizes), totals.unflatten(2, sizes)), (0, 2)


class StreamedBackward(BackwardPass):
    """A part of the backward pass of streamed routing."""

    backward = jvp = staticmethod(_refuse)


_route = own_backward(
    "route_streamed",
    _forward,
    _backward,
    _empty,
    _refuse,
    Signature(
        ("child_poses", "packed_weights", "bias?", "log_priors?"),
        others="int iterations, bool none_of_the_above, str gradient, str? group_name",
        num_kept=1,
        transposed=("child_poses", "log_priors"),
        on_demand=("child_poses", "packed_weights", "log_priors"),
    ),
    function=_Batched,
)
