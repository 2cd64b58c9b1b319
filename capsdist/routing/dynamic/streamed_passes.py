"""The passes of `streamed`: all iterations forward, and all of them backward, for one block of images.

The mathematics is at the head of `streamed`; names follow it. Children are innermost in every buffer, so that
element-wise work runs along contiguous memory; buffers are allocated once a call and written in place,
because on a CPU passes over memory cost more than arithmetic. Products are added by `out=`, which
FlopCounterMode counts, not by methods such as `baddbmm_`, which it does not know.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, R iterations; b images
of a block, n images of a chunk, m children of a tile, j parents of a piece (see `cuts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from capsdist.ops import squash, squash_backward
from capsdist.routing.common.tiling import Pieces, Scratch, slices
from capsdist.routing.dynamic.cuts import SQUASH_NUMBERS, plan_tiles
from capsdist.routing.dynamic.options import RoutingOptions

__all__ = [
    "Gradients", "Stream", "add_coupled_gradients", "add_coupled_total", "add_gradients", "add_squashed",
    "add_totals", "dot", "pair_products", "parts",
]  # fmt: skip


class Stream:
    """One call's operands, handed out piece by piece in the layout and dtype that is computed in.

    `reduce` adds up, in place, what each rank holds of a tensor [J, B, E] that is a sum over children; then
    all images are one block, so that every rank calls it equally often.
    """

    def __init__(
        self,
        child_poses: Tensor,
        packed_weights: Tensor,
        log_priors: Tensor | None,
        dtype: torch.dtype,
        options: RoutingOptions,
        rows: int,
        reduce: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.options, self.reduce = options, reduce
        self.num_parents, self.parent_dim = packed_weights.shape[:2]
        self.num_logits = self.num_parents + options.none_of_the_above
        self.scratch = Scratch(dtype, child_poses.device)
        self.plan = plan_tiles(
            len(child_poses),
            packed_weights.shape,
            rows=rows,
            itemsize=dtype.itemsize,
            poses_itemsize=child_poses.dtype.itemsize,
            device=child_poses.device.type,
            weights_fit=self.scratch.fits(packed_weights),
        )
        self.block = self.plan.block if reduce is None else max(1, len(child_poses))
        self._whole = self.plan.children == packed_weights.shape[3]
        self._poses = child_poses.transpose(1, 2)
        self._weights = Pieces(self.scratch, "weights", packed_weights)
        self._priors = None if log_priors is None else log_priors.T

    @property
    def starts_uniform(self) -> bool:
        """Whether the coupling of the first iteration is the same number for all children and parents."""
        return self._priors is None

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of images and their poses [b, D, I], repacked if one tile takes them all."""
        for block in slices(len(self._poses), self.block):
            poses = self._poses[block]
            yield block, self.scratch.fit("poses", poses) if self._whole else poses

    def tiles(self, poses: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield tiles of children and their poses [b, D, m], contiguous."""
        for tile in slices(poses.shape[2], self.plan.children):
            yield tile, self.scratch.fit("poses", poses[..., tile])

    def chunks(self, poses: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield chunks of images and their poses [n, D, m]."""
        for chunk in slices(len(poses), self.plan.images):
            yield chunk, poses[chunk]

    def pieces(self, tile: slice) -> Iterator[tuple[slice, Tensor]]:
        """Yield pieces of parents and a tile's weights [j, E, D * m], contiguous."""
        for parents in slices(self.num_parents, self.plan.parents):
            yield parents, self._weights.at(parents, tile)

    def couple(self, tile: slice, logits: Tensor, out: Tensor) -> None:
        """Write the coupling of a tile into out [num_logits, n, m], given its agreement so far in logits.

        Both are alike; the priors are added to logits, and a row beyond J becomes the logit 0.
        """
        if self._priors is not None:
            logits[: self.num_parents] += self.scratch.fit("priors", self._priors[:, tile])[:, None]
        logits[self.num_parents :] = 0
        torch.softmax(logits, 0, out=out)


@dataclass
class Gradients:
    """Where the gradients of one block are added to; None where none is wanted.

    poses [b, D, I] of the block, weights [J, E, D, I] by pieces, priors [J, I], bias [J, E].
    """

    poses: Tensor | None
    weights: Pieces | None
    priors: Tensor | None
    bias: Tensor


def add_totals(stream: Stream, poses: Tensor, bias: Tensor | None, totals: Tensor) -> None:
    """Run all iterations forward for poses [b, D, I]; add their totals to the zeros [R, J, b, E]."""
    state = torch.zeros_like(totals[0])  # V
    for iteration, total in enumerate(totals):
        for tile, tile_poses in stream.tiles(poses):
            if iteration == 0 and stream.starts_uniform:
                _add_uniform_total(stream, tile, tile_poses, total)
            else:
                add_coupled_total(stream, tile, tile_poses, state if iteration else None, total)
        if stream.reduce is not None:
            stream.reduce(total)
        if bias is not None:
            total += bias[:, None]
        if iteration < len(totals) - 1:
            add_squashed(state, total)


def add_squashed(target: Tensor, totals: Tensor) -> None:
    """Add the squash of totals to target, both [J, b, E]."""
    for part in parts(totals):
        target[part] += squash(totals[part])


def parts(states: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut the parents and images of states [J, b, E], so that temporaries of a squash stay small."""
    num_parents, num_images, parent_dim = states.shape
    parents = min(num_parents, max(1, SQUASH_NUMBERS // parent_dim))
    for part in slices(num_parents, parents):
        for images in slices(num_images, max(1, SQUASH_NUMBERS // (parents * parent_dim))):
            yield part, images


def add_gradients(stream: Stream, poses: Tensor, totals: Tensor, grad: Tensor, found: Gradients) -> None:
    """Run all iterations backward for one block: poses [b, D, I], totals [R, J, b, E], grad [J, b, E]."""
    d_state = totals.new_zeros(totals.shape[1:])  # dV
    d_total, increment, state = (torch.empty_like(d_state) for _ in range(3))
    last = len(totals) - 1
    for iteration in range(last, -1 if stream.options.gradient == "full" else last - 1, -1):
        for part in parts(d_state):
            d_pose = grad[part].to(totals.dtype) if iteration == last else d_state[part]
            d_total[part] = squash_backward(totals[iteration][part], d_pose)
        found.bias += d_total.sum(1)
        increment.zero_()
        state.zero_()
        for earlier in totals[:iteration]:
            add_squashed(state, earlier)
        for tile, tile_poses in stream.tiles(poses):
            with stream.scratch.adding_to("d_poses", found.poses, (..., tile)) as d_u:
                if iteration == 0 and stream.starts_uniform:
                    _add_uniform_gradients(stream, tile, tile_poses, d_total, d_u, found.weights)
                else:
                    add_coupled_gradients(stream, tile, tile_poses, state, d_total, increment, d_u, found)
        if iteration > 0 and stream.options.gradient == "full":
            _carry(d_state, increment, stream.reduce)
    if found.weights is not None:
        found.weights.flush()


def _carry(d_state: Tensor, increment: Tensor, reduce: Callable[[Tensor], None] | None) -> None:
    """Add to dV [J, b, E] what one iteration gives it, on all ranks.

    Only the increment is summed over ranks: they all hold the same dV, and would count it once each.
    """
    if reduce is not None:
        reduce(increment)
    d_state += increment


def _add_uniform_total(stream: Stream, tile: slice, poses: Tensor, total: Tensor) -> None:
    """Add what the children of one tile give to total [J, b, E] with a constant coupling."""
    for parents, weights in stream.pieces(tile):
        num_parents, parent_dim, _ = weights.shape
        sums = stream.scratch.take("sums", len(poses), num_parents * parent_dim)
        torch.mm(poses.flatten(1), weights.flatten(0, 1).mT, out=sums)
        by_parent = sums.view(len(poses), num_parents, parent_dim).transpose(0, 1)
        total[parents].add_(by_parent, alpha=1 / stream.num_logits)


def add_coupled_total(
    stream: Stream, tile: slice, poses: Tensor, state: Tensor | None, total: Tensor
) -> None:
    """Add what the children of one tile give to total [J, b, E], coupled by their agreement with state.

    No state is one of zeros: priors alone make the coupling.
    """
    take = stream.scratch.take
    for chunk, u in stream.chunks(poses):
        num_images, child_dim, num_children = u.shape
        logits, coupling = take("factors", 2, stream.num_logits, num_images, num_children)
        if state is None:
            logits.zero_()
        else:
            for parents, weights in stream.pieces(tile):
                products = take("products", len(weights), num_images, child_dim * num_children)
                torch.bmm(state[parents, chunk], weights, out=products)
                dot(products.view(len(weights), *u.shape), u, out=logits[parents])
        stream.couple(tile, logits, out=coupling)
        for parents, weights in stream.pieces(tile):
            products = take("products", len(weights), num_images, child_dim * num_children)
            torch.mul(coupling[parents].unsqueeze(2), u, out=products.view(len(weights), *u.shape))
            _add_product(total[parents, chunk], products, weights.mT, stream.scratch)


def _add_uniform_gradients(
    stream: Stream,
    tile: slice,
    poses: Tensor,
    d_total: Tensor,
    d_u: Tensor | None,
    d_weights: Pieces | None,
) -> None:
    """Add the gradients of a first iteration whose coupling is a constant."""
    for parents, weights in stream.pieces(tile):
        num_parents, parent_dim, _ = weights.shape
        rows = stream.scratch.take("sums", len(poses), num_parents, parent_dim)
        torch.div(d_total[parents].transpose(0, 1), stream.num_logits, out=rows)
        if d_u is not None:
            sums = d_u.flatten(1)
            torch.addmm(sums, rows.flatten(1), weights.flatten(0, 1), out=sums)
        if d_weights is not None:
            sums = d_weights.at(parents, tile).flatten(0, 1)
            torch.addmm(sums, rows.flatten(1).mT, poses.flatten(1), out=sums)


def add_coupled_gradients(
    stream: Stream,
    tile: slice,
    poses: Tensor,
    state: Tensor,
    d_total: Tensor,
    increment: Tensor,
    d_u: Tensor | None,
    found: Gradients,
) -> None:
    """Add the gradients of an iteration with a coupling of its own, and to the increment of dV [J, b, E]."""
    num_parents, take = stream.num_parents, stream.scratch.take
    for chunk, u in stream.chunks(poses):
        # Three planes: logits, to be replaced by db; dc; c.
        planes = take("factors", 3, stream.num_logits, len(u), u.shape[2])
        by_parent = planes[:, :num_parents].transpose(0, 1)  # [J, 3, n, m]
        sides = products = planes[:0]
        for parents, weights in stream.pieces(tile):
            sides, products = pair_products(stream, state[parents, chunk], d_total[parents, chunk], weights)
            dot(products.view(len(weights), 2, *u.shape), u, out=by_parent[parents, :2])
        stream.couple(tile, planes[0], out=planes[2])
        _softmax_backward(by_parent[:, 2], by_parent[:, 1], out=by_parent[:, 0])
        if found.priors is not None:
            found.priors[:, tile] += by_parent[:, 0].sum(1)
        if stream.options.gradient == "last":
            by_parent[:, 0] = 0
        for parents, weights in stream.pieces(tile):
            if len(weights) < num_parents:  # another piece lies in the buffers
                sides, products = pair_products(
                    stream, state[parents, chunk], d_total[parents, chunk], weights
                )
            by_dim = products.view(len(weights), 2, *u.shape)
            factors = by_parent[parents, ::2].unsqueeze(3)  # [j, 2, n, 1, m]: db and c
            if d_u is not None:
                by_dim.mul_(factors)
                d_u[chunk] += torch.sum(by_dim, (0, 1), out=take("d_u", *u.shape))
            torch.mul(factors, u, out=by_dim)
            if found.weights is not None:
                sums = found.weights.at(parents, tile)
                torch.baddbmm(sums, sides.mT, products, out=sums)
            _add_product(increment[parents, chunk], products[:, : len(u)], weights.mT, stream.scratch)


def pair_products(stream: Stream, first: Tensor, second: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return two operands [j, n, E] as one of [j, 2n, E], and its product with weights [j, E, D * m]."""
    num_parents, num_images, parent_dim = first.shape
    sides = stream.scratch.take("sides", num_parents, 2, num_images, parent_dim)
    torch.stack((first, second), dim=1, out=sides)
    products = stream.scratch.take("products", num_parents, 2 * num_images, weights.shape[2])
    return sides.flatten(1, 2), torch.bmm(sides.flatten(1, 2), weights, out=products)


def dot(products: Tensor, poses: Tensor, out: Tensor) -> None:
    """Write the dot product over D of products [J, ..., n, D, m] and poses [n, D, m] into out [J, ..., n, m].

    Accumulates into the small result: no temporary of the size of the products.
    """
    torch.mul(products[..., 0, :], poses[:, 0], out=out)
    for dim in range(1, poses.shape[1]):
        out.addcmul_(products[..., dim, :], poses[:, dim])


def _add_product(target: Tensor, left: Tensor, right: Tensor, scratch: Scratch) -> None:
    """Add left @ right to target, one product per parent; `baddbmm_` would not batch them for a slice."""
    target += torch.bmm(left, right, out=scratch.take("sums", *target.shape))


def _softmax_backward(coupling: Tensor, d_coupling: Tensor, out: Tensor) -> None:
    """Write coupling * (d_coupling - sum over J of coupling * d_coupling), [J, n, m], into out."""
    torch.mul(coupling, d_coupling, out=out)
    torch.sub(d_coupling, out.sum(0), out=out)
    out.mul_(coupling)
