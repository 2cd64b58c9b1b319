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

Ours; exact through all iterations. Children are innermost in every buffer, so that element-wise work runs
along contiguous memory; buffers are allocated once a call and written in place, because on a CPU passes over
memory cost more than arithmetic.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, R iterations; b images
of a block, n images of a chunk, m children of a tile (see `tiling`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from capsdist.ops import squash, squash_backward
from capsdist.routing.tiling import Scratch, plan_tiles, slices

__all__ = ["route_streamed"]


def route_streamed(
    child_poses: Tensor,
    packed_weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    none_of_the_above: bool = False,
) -> Tensor:
    """Return the parent poses of Procedure 1 (paper, section 2) without ever storing votes.

    Args:
        child_poses: [B, I, D]; not copied if their memory is laid out as [B, D, I] already.
        packed_weights: [J, E, D, I], see `packing`. Hand over the Parameter itself: it is what is saved for
            the backward pass, and ZeRO-3 can release it (a view or a copy of it would stay in memory).
        iterations: r >= 1.
        bias: [J, E] added to the totals, or None.
        none_of_the_above: one more logit, always 0, takes part in the softmax.

    Returns:
        [B, J, E] in the dtype of `child_poses`. Float64 is computed in float64, everything else in fp32,
        also under autocast.

    Cost: 2R - 1 matrix products of 2 B I J D E FLOP forward, 5R - 3 backward. Kept for the backward pass: the
    arguments and R B J E numbers. Scratch: bounded whatever the shape, see `tiling`.

    Raises:
        NotImplementedError: in a backward pass with create_graph=True; it is differentiable once.
    """
    return _Routing.apply(child_poses, packed_weights, bias, iterations, none_of_the_above)


class _Routing(torch.autograd.Function):
    """The side that autograd sees: what is saved, in which dtype, which gradients are wanted."""

    @staticmethod
    def forward(
        ctx: Any,
        child_poses: Tensor,
        packed_weights: Tensor,
        bias: Tensor | None,
        iterations: int,
        none_of_the_above: bool,
    ) -> Tensor:
        dtype = torch.float64 if child_poses.dtype == torch.float64 else torch.float32
        num_parents, dim_parent, _, _ = packed_weights.shape
        totals = torch.zeros(
            (iterations, num_parents, len(child_poses), dim_parent), dtype=dtype, device=child_poses.device
        )
        if bias is not None:
            totals += bias.to(dtype)[:, None]
        with torch.autocast(child_poses.device.type, enabled=False):
            stream = _Stream(child_poses, packed_weights, dtype, none_of_the_above, rows=1)
            for block, poses in stream.blocks():
                _add_totals(stream, poses, totals[:, :, block])
            parent_poses = squash(totals[-1]).transpose(0, 1)
        ctx.save_for_backward(child_poses, packed_weights, totals)
        ctx.none_of_the_above = none_of_the_above
        ctx.bias_dtype = None if bias is None else bias.dtype
        return parent_poses.to(child_poses.dtype).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # torch's own once_differentiable lets a second derivative through as 0 where grad is a constant.
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "streamed routing is differentiable once; for create_graph=True choose form='reference'"
            )
        child_poses, packed_weights, totals = ctx.saved_tensors
        want_poses, want_weights, want_bias = ctx.needs_input_grad[:3]
        # Both are made in the fast layouts; the poses' gradient is returned as a view of it.
        d_poses = child_poses.new_zeros(child_poses.transpose(1, 2).shape) if want_poses else None
        d_weights = totals.new_zeros(packed_weights.shape) if want_weights else None
        d_bias = totals.new_zeros(packed_weights.shape[:2])
        grad = grad.to(totals.dtype).transpose(0, 1)  # [J, B, E]
        with torch.autocast(child_poses.device.type, enabled=False):
            stream = _Stream(child_poses, packed_weights, totals.dtype, ctx.none_of_the_above, rows=2)
            for block, poses in stream.blocks():
                with stream.scratch.adding_to("d_poses of block", d_poses, block) as d_block:
                    d_bias += _add_gradients(
                        stream, poses, totals[:, :, block], grad[:, block], d_block, d_weights
                    )
        return (
            None if d_poses is None else d_poses.transpose(1, 2),
            None if d_weights is None else d_weights.to(packed_weights.dtype),
            d_bias.to(ctx.bias_dtype) if want_bias else None,
            None,
            None,
        )


class _Stream:
    """One call's operands, handed out piece by piece in the layout and dtype that is computed in."""

    def __init__(
        self,
        child_poses: Tensor,
        packed_weights: Tensor,
        dtype: torch.dtype,
        none_of_the_above: bool,
        rows: int,
    ) -> None:
        self.num_parents = len(packed_weights)
        self.num_logits = self.num_parents + none_of_the_above
        self.scratch = Scratch(dtype, child_poses.device)
        self.plan = plan_tiles(
            len(child_poses),
            packed_weights.shape,
            rows=rows,
            itemsize=dtype.itemsize,
            poses_itemsize=child_poses.dtype.itemsize,
            device=child_poses.device.type,
        )
        self._whole = self.plan.children == packed_weights.shape[3]
        self._poses = child_poses.transpose(1, 2)
        self._weights = self.scratch.fit("weights", packed_weights) if self._whole else packed_weights

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of images and their poses [b, D, I], repacked if one tile takes them all."""
        for block in slices(len(self._poses), self.plan.block):
            poses = self._poses[block]
            yield block, self.scratch.fit("poses", poses) if self._whole else poses

    def tiles(self, poses: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield tiles of children, their poses [b, D, m] and weights [J, E, D * m], both contiguous."""
        for tile in slices(poses.shape[2], self.plan.children):
            weights = self.scratch.fit("weights", self._weights[..., tile])
            yield tile, self.scratch.fit("poses", poses[..., tile]), weights.flatten(2)

    def chunks(self, poses: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield chunks of images and their poses [n, D, m]."""
        for chunk in slices(len(poses), self.plan.images):
            yield chunk, poses[chunk]

    def couple(self, logits: Tensor, out: Tensor) -> None:
        """Write the coupling of logits [num_logits, n, m] into out, alike; a row beyond J is the logit 0."""
        logits[self.num_parents :] = 0
        torch.softmax(logits, 0, out=out)


def _add_totals(stream: _Stream, poses: Tensor, totals: Tensor) -> None:
    """Run all iterations forward for poses [b, D, I]; add to totals [R, J, b, E], which hold the bias."""
    state = torch.zeros_like(totals[0])  # V
    for iteration, total in enumerate(totals):
        for _, tile_poses, weights in stream.tiles(poses):
            if iteration == 0:
                sums = tile_poses.flatten(1) @ weights.flatten(0, 1).mT  # [b, J * E]
                by_parent = sums.view(len(poses), *total.shape[::2]).transpose(0, 1)
                total.add_(by_parent, alpha=1 / stream.num_logits)
            else:
                _add_coupled_total(stream, tile_poses, weights, state, total)
        state += squash(total)


def _add_coupled_total(stream: _Stream, poses: Tensor, weights: Tensor, state: Tensor, total: Tensor) -> None:
    """Add what the children of one tile give to total [J, b, E], coupled by their agreement with state."""
    num_parents = stream.num_parents
    for chunk, u in stream.chunks(poses):
        num_images, dim_child, num_children = u.shape
        products = stream.scratch.take("products", num_parents, num_images, u[0].numel())
        by_dim = products.view(num_parents, num_images, dim_child, num_children)
        logits, coupling = stream.scratch.take("factors", 2, stream.num_logits, num_images, num_children)
        torch.bmm(state[:, chunk], weights, out=products)
        _dot(by_dim, u, out=logits[:num_parents])
        stream.couple(logits, out=coupling)
        torch.mul(coupling[:num_parents].unsqueeze(2), u, out=by_dim)
        _add_product(total[:, chunk], products, weights.mT, stream.scratch)


def _add_gradients(
    stream: _Stream,
    poses: Tensor,
    totals: Tensor,
    grad: Tensor,
    d_poses: Tensor | None,
    d_weights: Tensor | None,
) -> Tensor:
    """Run all iterations backward for one block; add to the gradients wanted, return that of the bias [J, E].

    Shapes: poses and d_poses [b, D, I], totals [R, J, b, E], grad [J, b, E], d_weights [J, E, D, I].
    """
    states = squash(totals[:-1]).cumsum(0)  # V after each iteration but the last
    d_state = torch.zeros_like(grad)
    d_bias = totals.new_zeros(totals.shape[1::2])
    for iteration in reversed(range(len(totals))):
        d_pose = grad if iteration == len(totals) - 1 else d_state
        d_total = squash_backward(totals[iteration], d_pose)
        d_bias += d_total.sum(1)
        for tile, tile_poses, weights in stream.tiles(poses):
            with (
                stream.scratch.adding_to("d_poses", d_poses, (..., tile)) as d_u,
                stream.scratch.adding_to("d_weights", d_weights, (..., tile)) as d_w,
            ):
                if iteration == 0:
                    _add_uniform_gradients(stream, tile_poses, weights, d_total, d_u, d_w)
                else:
                    state = states[iteration - 1]
                    _add_coupled_gradients(stream, tile_poses, weights, state, d_total, d_state, d_u, d_w)
    return d_bias


def _add_uniform_gradients(
    stream: _Stream, poses: Tensor, weights: Tensor, d_total: Tensor, d_u: Tensor | None, d_w: Tensor | None
) -> None:
    """Add the gradients of the first iteration, whose coupling is a constant."""
    rows = d_total.transpose(0, 1).flatten(1) / stream.num_logits  # [b, J * E]
    if d_u is not None:
        d_u.flatten(1).addmm_(rows, weights.flatten(0, 1))
    if d_w is not None:
        d_w.view(rows.shape[1], -1).addmm_(rows.mT, poses.flatten(1))


def _add_coupled_gradients(
    stream: _Stream,
    poses: Tensor,
    weights: Tensor,
    state: Tensor,
    d_total: Tensor,
    d_state: Tensor,
    d_u: Tensor | None,
    d_w: Tensor | None,
) -> None:
    """Add the gradients of a later iteration; the names are those of the module's docstring."""
    num_parents, take = stream.num_parents, stream.scratch.take
    for chunk, u in stream.chunks(poses):
        num_images, dim_child, num_children = u.shape
        # Of each pair, the first belongs to V (with G and db), the second to ds (with H and c).
        sides = torch.stack((state[:, chunk], d_total[:, chunk]), dim=1).flatten(1, 2)  # [J, 2n, E]
        products = take("products", num_parents, 2 * num_images, dim_child * num_children)
        by_dim = products.view(num_parents, 2, num_images, dim_child, num_children)
        # Three planes: logits, to be replaced by db; dc; c.
        planes = take("factors", 3, stream.num_logits, num_images, num_children)
        by_parent = planes[:, :num_parents].transpose(0, 1)  # [J, 3, n, m]
        factors = by_parent[:, ::2].unsqueeze(3)  # [J, 2, n, 1, m]: db and c

        torch.bmm(sides, weights, out=products)
        _dot(by_dim, u, out=by_parent[:, :2])
        stream.couple(planes[0], out=planes[2])
        _softmax_backward(by_parent[:, 2], by_parent[:, 1], out=by_parent[:, 0])
        if d_u is not None:
            by_dim.mul_(factors)
            d_u[chunk] += torch.sum(by_dim, (0, 1), out=take("d_u", *u.shape))
        torch.mul(factors, u, out=by_dim)
        if d_w is not None:
            d_w.flatten(2).baddbmm_(sides.mT, products)
        _add_product(d_state[:, chunk], products[:, :num_images], weights.mT, stream.scratch)


def _dot(products: Tensor, poses: Tensor, out: Tensor) -> None:
    """Write the dot product over D of products [J, ..., n, D, m] and poses [n, D, m] into out [J, ..., n, m].

    Accumulates into the small result: no temporary of the size of the products.
    """
    torch.mul(products[..., 0, :], poses[:, 0], out=out)
    for dim in range(1, poses.shape[1]):
        out.addcmul_(products[..., dim, :], poses[:, dim])


def _add_product(target: Tensor, left: Tensor, right: Tensor, scratch: Scratch) -> None:
    """Add left @ right to target, one product a parent; `baddbmm_` would not batch them for a slice."""
    target += torch.bmm(left, right, out=scratch.take("sums", *target.shape))


def _softmax_backward(coupling: Tensor, d_coupling: Tensor, out: Tensor) -> None:
    """Write coupling * (d_coupling - sum over J of coupling * d_coupling), [J, n, m], into out."""
    torch.mul(coupling, d_coupling, out=out)
    torch.sub(d_coupling, out.sum(0), out=out)
    out.mul_(coupling)
