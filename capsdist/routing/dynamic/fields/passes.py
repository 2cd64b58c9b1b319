"""The passes of streamed routing between grids: all iterations forward and backward, for a block of images.

The mathematics is at the head of `capsdist.routing.dynamic.streamed`. Two things differ: the children of a
field are gathered, a block of images at a time, and a child divides itself over the parents of all fields
that it is in. Pairs of image and position are innermost in every buffer, so that element-wise work runs along
contiguous memory; children are taken a few types at a time, with all places of the field, because the
softmax of a child goes over its places.

Shape letters: B images, N child positions, T child types, P parent positions, K places of a field, J parent
types, D child dimension, E parent dimension; n pairs of image and position of a block, m = t K children of a
tile, j parent types of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from capsdist.ops import squash, squash_backward
from capsdist.routing.common.tiling import MIB, Pieces, Scratch, chunk_bytes, slices
from capsdist.routing.dynamic.fields.call import FieldCall

__all__ = ["Block", "Cuts", "Gradients", "plan_cuts"]

_BLOCK_BYTES = 20 * MIB  # of a block's patches, their gradient, and its buffers [J, E, n]
_NUM_STATES = 6


@dataclass(frozen=True)
class Cuts:
    """Images of a block, child types of a tile, parent types of a piece."""

    images: int
    types: int
    parents: int


@dataclass(frozen=True)
class Gradients:
    """What gradients are added to: weights [J, E, D, T K] by pieces, bias [J, E], priors [J, T K] or None."""

    weights: Pieces
    bias: Tensor
    priors: Tensor | None


def plan_cuts(call: FieldCall, *, rows: int, itemsize: int) -> Cuts:
    """Choose the cuts: buffers of a tile stay in the cache where one image's planes allow it.

    rows: products held a child, parent and pair: 1 forward, 2 backward.
    """
    num_images, _, types, child_dim = call.child_poses.shape
    num_parents, parent_dim = call.packed_weights.shape[:2]
    pairs, places = call.fields.num_parents, call.fields.size
    of_image = pairs * itemsize * (2 * child_dim * types * places + _NUM_STATES * num_parents * parent_dim)
    images = max(1, min(num_images, _BLOCK_BYTES // of_image))
    budget = chunk_bytes(call.child_poses.device.type)

    def bytes_of(images: int, types: int, parents: int) -> int:
        per_pair = rows * child_dim * parents + (rows + 1) * num_parents + child_dim
        return images * pairs * types * places * per_pair * itemsize

    parents = num_parents
    while types > 1 and bytes_of(images, types, parents) > budget:
        types = -(-types // 2)
    while images > 1 and bytes_of(images, types, parents) > budget:
        images = -(-images // 2)
    while parents > 1 and bytes_of(images, types, parents) > budget:
        parents = -(-parents // 2)
    return Cuts(images, types, parents)


class Block:
    """Some images, the patches of their children, and the passes over them."""

    def __init__(self, call: FieldCall, images: slice, scratch: Scratch, weights: Pieces, cuts: Cuts) -> None:
        self._call, self._scratch, self._weights, self._cuts = call, scratch, weights, cuts
        fields, poses = call.fields, call.child_poses[images]
        self._num_images, _, self._types, self._dim = poses.shape
        self._places, self.num = fields.size, len(poses) * fields.num_parents
        self._num_parents = call.packed_weights.shape[0]
        seen = fields.at_places(poses.permute(3, 2, 0, 1), 0.0).transpose(2, 3)  # [D, T, K, b, P]
        patches = scratch.take("patches", *seen.shape).copy_(seen)
        self._patches = patches.view(self._dim, self._types * self._places, self.num)  # u

    def totals(self, totals: Tensor, bias: Tensor | None) -> None:
        """Run all iterations forward: add to the zeros [R, J, E, n]."""
        state = torch.zeros_like(totals[0])  # V
        for iteration, total in enumerate(totals):
            for tile in self._tiles():
                if iteration == 0 and self._call.log_priors is None:
                    self._add_first(tile, total)
                else:
                    self._add_coupled(tile, state if iteration else None, total)
            if bias is not None:
                total += bias[..., None]
            if iteration < len(totals) - 1:
                state += squash(total, dim=1)

    def gradients(self, totals: Tensor, grad: Tensor, into: Gradients) -> Tensor:
        """Run all iterations backward, of totals and the gradient of the result [J, E, n].

        Return the gradient of the poses [b, N, T, D].
        """
        d_patches = self._scratch.take("d_patches", *self._patches.shape).zero_()
        d_state, last = torch.zeros_like(grad), len(totals) - 1
        states = [torch.zeros_like(grad)]
        for total in totals[:-1]:
            states.append(states[-1] + squash(total, dim=1))
        for iteration in range(last, -1 if self._call.options.gradient == "full" else last - 1, -1):
            d_pose = grad if iteration == last else d_state
            d_total = squash_backward(totals[iteration].mT, d_pose.mT).mT.contiguous()
            into.bias.add_(d_total.sum(2))
            for tile in self._tiles():
                if iteration == 0 and self._call.log_priors is None:
                    self._add_first_gradients(tile, d_total, d_patches, into)
                else:
                    self._add_coupled_gradients(
                        tile, states[iteration], d_total, d_state, d_patches, into, carry=iteration > 0
                    )
        into.weights.flush()
        return self._to_children(d_patches)

    # -- one tile of one iteration

    def _add_first(self, tile: slice, total: Tensor) -> None:
        """Add what the children of a tile give to total, equal shares of all parents that see them."""
        weighted = self._weighted(tile)
        for parents, weights in self._pieces(tile):
            total[parents] += torch.matmul(weights, weighted)

    def _add_coupled(self, tile: slice, state: Tensor | None, total: Tensor) -> None:
        """Add what the children of a tile give to total, coupled by their agreement with state."""
        u = self._patches[:, tile]
        logits = self._planes("logits", 1, tile)[0]
        if state is None:
            logits.zero_()
        else:
            for parents, weights in self._pieces(tile):
                products = self._products(weights.mT, state[parents])
                _dot(products, u, logits[parents])
        coupling = self._couple(tile, logits, self._planes("coupling", 1, tile)[0])
        for parents, weights in self._pieces(tile):
            products = self._scratch.take("products", len(weights), *u.shape)
            torch.mul(coupling[parents, None], u, out=products)
            total[parents] += torch.bmm(weights, products.flatten(1, 2))

    def _add_first_gradients(self, tile: slice, d_total: Tensor, d_patches: Tensor, into: Gradients) -> None:
        weighted, share = self._weighted(tile), self._first_share(tile)
        for parents, weights in self._pieces(tile):
            found = torch.mm(weights.flatten(0, 1).mT, d_total[parents].flatten(0, 1))
            d_patches[:, tile].addcmul_(found.view(self._dim, -1, self.num), share)
            sums = into.weights.at(parents, tile)
            sums += torch.mm(d_total[parents].flatten(0, 1), weighted.mT).view_as(sums)

    def _add_coupled_gradients(
        self,
        tile: slice,
        state: Tensor,
        d_total: Tensor,
        d_state: Tensor,
        d_patches: Tensor,
        into: Gradients,
        *,
        carry: bool,
    ) -> None:
        u = self._patches[:, tile]
        logits, d_coupling, coupling = self._planes("logits", 3, tile)
        whole = self._cuts.parents >= self._num_parents
        pair = torch.stack((state, d_total), dim=2)  # [J, E, 2, n]
        for parents, weights in self._pieces(tile):
            products = self._products(weights.mT, pair[parents].flatten(2))
            both = products.view(len(weights), *u.shape[:2], 2, self.num)
            _dot(both[..., 0, :], u, logits[parents])
            _dot(both[..., 1, :], u, d_coupling[parents])
        self._couple(tile, logits, coupling)
        d_logits = self._uncouple(coupling, d_coupling, logits)
        if into.priors is not None:
            into.priors[:, tile] += d_logits.sum(2)
        if self._call.options.gradient == "last":
            d_logits.zero_()
        for parents, weights in self._pieces(tile):
            shape = len(weights), weights.shape[2], 2 * self.num
            if whole:
                products = self._scratch.take("products", *shape)
            else:  # another piece lies in the buffer
                products = self._products(weights.mT, pair[parents].flatten(2))
            both = products.view(len(weights), *u.shape[:2], 2, self.num)
            d_u = d_patches[:, tile]
            for number, parent in enumerate(range(*parents.indices(self._num_parents))):
                d_u.addcmul_(both[number, ..., 0, :], d_logits[parent])
                d_u.addcmul_(both[number, ..., 1, :], coupling[parent])
            torch.mul(d_logits[parents, None], u, out=both[..., 0, :])
            torch.mul(coupling[parents, None], u, out=both[..., 1, :])
            sums = into.weights.at(parents, tile)
            sums += torch.bmm(pair[parents].flatten(2), products.mT)
            if carry:
                d_state[parents] += torch.bmm(weights, both[..., 0, :].flatten(1, 2))

    # -- parts

    def _tiles(self) -> Iterator[slice]:
        """Yield tiles of children, by types and with all places."""
        return slices(self._types * self._places, self._cuts.types * self._places)

    def _pieces(self, tile: slice) -> Iterator[tuple[slice, Tensor]]:
        """Yield pieces of parents, and a tile's weights [j, E, D * m], contiguous."""
        for parents in slices(self._num_parents, self._cuts.parents):
            yield parents, self._weights.at(parents, tile)

    def _planes(self, name: str, number: int, tile: slice) -> Tensor:
        width = len(range(*tile.indices(self._types * self._places)))
        return self._scratch.take(name, number, self._num_parents, width, self.num)

    def _products(self, left: Tensor, right: Tensor) -> Tensor:
        """Return left @ right in the buffer of products, [j, D * m, ...]."""
        out = self._scratch.take("products", len(left), left.shape[1], right.shape[2])
        return torch.bmm(left, right, out=out)

    def _first_share(self, tile: slice) -> Tensor:
        """Return the coupling of logits 0, [m, n]; 0 where there is no child."""
        none = self._call.options.none_of_the_above
        if self._call.competition == "position":
            number = torch.ones(self._call.fields.num_children, device=self._patches.device)
        else:
            number = self._call.fields.num_seeing.to(self._patches.device)
        shares = 1 / (number * self._num_parents + none).to(self._patches.dtype)
        at_places = self._call.fields.at_places(shares, 0.0)  # [K, P]
        width = len(range(*tile.indices(self._types * self._places))) // self._places
        return at_places[None, :, None].expand(width, -1, self._num_images, -1).reshape(-1, self.num)

    def _weighted(self, tile: slice) -> Tensor:
        """Return the poses of a tile times their first share, [D * m, n]."""
        u = self._patches[:, tile]
        return torch.mul(u, self._first_share(tile), out=self._scratch.take("weighted", *u.shape)).flatten(
            0, 1
        )

    def _couple(self, tile: slice, logits: Tensor, out: Tensor) -> Tensor:
        """Write into out how the children of a tile divide themselves by logits, both [J, m, n]."""
        priors, none = self._call.log_priors, self._call.options.none_of_the_above
        if priors is not None:
            logits += priors[tile].to(logits.dtype).T[..., None]
        total = logits.logsumexp(0)
        if self._call.competition == "position":
            total = torch.logaddexp(total, total.new_zeros(())) if none else total
        else:
            of_child = self._over_parents(total, float("-inf")).logsumexp(0)
            if none:
                of_child = torch.logaddexp(of_child, of_child.new_zeros(()))
            # children that nobody sees, and places without a child
            total = self._of_places(of_child.nan_to_num(neginf=0.0), float("inf"))
        return torch.sub(logits, total, out=out).exp_()

    def _uncouple(self, coupling: Tensor, d_coupling: Tensor, out: Tensor) -> Tensor:
        """Write the gradient of the logits into out, of that of the coupling, all [J, m, n]."""
        dots = torch.mul(coupling, d_coupling, out=out).sum(0)
        if self._call.competition == "field":
            dots = self._of_places(self._over_parents(dots, 0.0).sum(0), 0.0)
        return torch.sub(d_coupling, dots, out=out).mul_(coupling)

    def _over_parents(self, of_pairs: Tensor, none: float) -> Tensor:
        """Return [M, t, b, N] of [m, n]: for each child what the places where it is seen have."""
        by_place = of_pairs.view(-1, self._places, self._num_images, self._call.fields.num_parents)
        return self._call.fields.at_parents(by_place.transpose(1, 2), none)

    def _of_places(self, of_children: Tensor, none: float) -> Tensor:
        """Return [m, n] of [t, b, N]; `none` where a place has no child."""
        at_places = self._call.fields.at_places(of_children, none)  # [t, b, K, P]
        return at_places.transpose(1, 2).reshape(-1, self.num)

    def _to_children(self, d_patches: Tensor) -> Tensor:
        """Return the gradient of the poses [b, N, T, D], sums over the patches of each child."""
        by_place = d_patches.view(self._dim, self._types, self._places, self._num_images, -1)
        return self._call.fields.sum_over_parents(by_place.transpose(2, 3)).permute(2, 3, 1, 0)


def _dot(products: Tensor, poses: Tensor, out: Tensor) -> None:
    """Write into out the dot product over D of products [j, D, m, n] or [j, D * m, n] and poses [D, m, n]."""
    by_dim = products.view(len(products), *poses.shape) if products.dim() == 3 else products
    torch.mul(by_dim[:, 0], poses[0], out=out)
    for dim in range(1, len(poses)):
        out.addcmul_(by_dim[:, dim], poses[dim])
