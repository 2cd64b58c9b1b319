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

Ours; exact through all iterations. The passes are in `stream`; here is what autograd sees.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, R iterations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from capsdist.ops import squash
from capsdist.routing.stream import Gradient, Gradients, Options, Stream, add_gradients, add_totals, parts
from capsdist.routing.tiling import Pieces

__all__ = ["route_streamed"]


def route_streamed(
    child_poses: Tensor,
    packed_weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
    none_of_the_above: bool = False,
    gradient: Gradient = "full",
) -> Tensor:
    """Return the parent poses of Procedure 1 (paper, section 2) without ever storing votes.

    Args:
        child_poses: [B, I, D]; not copied if their memory is laid out as [B, D, I] already.
        packed_weights: [J, E, D, I], see `packing`. Hand over the Parameter itself: it is what is saved for
            the backward pass, and ZeRO-3 can release it (a view or a copy of it would stay in memory).
        iterations: r >= 1.
        bias: [J, E] added to the totals, or None.
        log_priors: [I, J] logits to start from, or None for 0.
        none_of_the_above: one more logit, always 0, takes part in the softmax.
        gradient: `last` takes the agreement of earlier iterations for a constant, see `route`.

    Returns:
        [B, J, E] in the dtype of `child_poses`. Float64 is computed in float64, everything else in fp32,
        also under autocast.

    Cost: 2R - 1 matrix products of 2 B I J D E FLOP forward, 5R - 3 backward, 5R with log priors. Kept
    for the backward pass: the arguments and R B J E numbers. Scratch: bounded, see `tiling`.

    Raises:
        NotImplementedError: in a backward pass with create_graph=True; it is differentiable once.
    """
    options = Options(iterations, none_of_the_above, gradient)
    return StreamedRouting.apply(child_poses, packed_weights, bias, log_priors, options)


class StreamedRouting(torch.autograd.Function):
    """The side that autograd sees: what is saved, in which dtype, which gradients are wanted."""

    @staticmethod
    def forward(
        ctx: Any,
        child_poses: Tensor,
        packed_weights: Tensor,
        bias: Tensor | None,
        log_priors: Tensor | None,
        options: Options,
    ) -> Tensor:
        """Run all blocks forward; see `route_streamed`."""
        dtype = torch.float64 if child_poses.dtype == torch.float64 else torch.float32
        num_images, (num_parents, dim_parent, _, _) = len(child_poses), packed_weights.shape
        parent_poses = child_poses.new_empty(num_images, num_parents, dim_parent)
        totals = parent_poses.new_zeros(
            (options.iterations, num_parents, num_images, dim_parent), dtype=dtype
        )
        wide_bias = None if bias is None else bias.to(dtype)
        with torch.autocast(child_poses.device.type, enabled=False):
            stream = Stream(child_poses, packed_weights, log_priors, dtype, options, rows=1)
            for block, poses in stream.blocks():
                add_totals(stream, poses, wide_bias, totals[:, :, block])
                last, result = totals[-1, :, block], parent_poses[block].transpose(0, 1)
                for part in parts(last):
                    result[part] = squash(last[part])
        ctx.save_for_backward(child_poses, packed_weights, totals, log_priors)
        ctx.options = options
        ctx.bias_dtype = None if bias is None else bias.dtype
        return parent_poses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run all blocks backward."""
        # torch's own once_differentiable lets a second derivative through as 0 where grad is a constant.
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "streamed routing is differentiable once; for create_graph=True choose form='reference'"
            )
        child_poses, packed_weights, totals, log_priors = ctx.saved_tensors
        want_poses, want_weights, want_bias, want_priors = ctx.needs_input_grad[:4]
        # All are made in the fast layouts; those of poses and log priors are returned as views of them.
        d_poses = child_poses.new_zeros(child_poses.transpose(1, 2).shape) if want_poses else None
        d_weights = totals.new_zeros(packed_weights.shape) if want_weights else None
        d_priors = totals.new_zeros(log_priors.T.shape) if want_priors else None
        d_bias = totals.new_zeros(packed_weights.shape[:2])
        with torch.autocast(child_poses.device.type, enabled=False):
            stream = Stream(child_poses, packed_weights, log_priors, totals.dtype, ctx.options, rows=2)
            pieces = None if d_weights is None else Pieces(stream.scratch, "d_weights", d_weights, sums=True)
            for block, poses in stream.blocks():
                with stream.scratch.adding_to("d_poses of block", d_poses, block) as d_block:
                    found = Gradients(d_block, pieces, d_priors, d_bias)
                    add_gradients(stream, poses, totals[:, :, block], grad[block].transpose(0, 1), found)
        return (
            None if d_poses is None else d_poses.transpose(1, 2),
            None if d_weights is None else d_weights.to(packed_weights.dtype),
            d_bias.to(ctx.bias_dtype) if want_bias else None,
            None if d_priors is None else d_priors.T.to(log_priors.dtype),
            None,
        )
