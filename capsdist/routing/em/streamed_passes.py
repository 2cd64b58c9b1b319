"""The passes of streamed EM routing over one block of images, all in scratch memory.

A block's votes are rebuilt by matrix products, one per place and type of the children, with everything that
parents have one of in the innermost dimension, so that each pass is long element-wise work:

    votes  [I, H, C, n]: I = K T children of a field, H = S * S, parent types, n = images * P
    R, L   [I, C, n]
    mean   [H, C, n]; logit, total [C, n]

Where a block of one image is too large for the scratch memory, parent types are taken in tiles, and each pass
rebuilds their votes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from capsdist.routing.common.tiling import MIB, Scratch, chunk_bytes, even_size, slices
from capsdist.routing.em.options import EMCall
from capsdist.routing.em.reference import least_total

__all__ = ["Block", "Gradients", "Sizes", "Stats"]

_MAX_TILE_BYTES = 21 * MIB  # of votes, and as many of their gradient


class Stats(NamedTuple):
    """What an M-step makes of every parent: mean, variance [H, C, n], total of R a and logit [C, n]."""

    mean: Tensor
    variance: Tensor
    total: Tensor
    logit: Tensor


class Gradients(NamedTuple):
    """What a backward pass adds to: weights [I, S(column), C, S(x)]; betas [C]."""

    weights: Tensor
    beta_u: Tensor
    beta_a: Tensor


@dataclass(frozen=True)
class Sizes:
    """Images of a block, and parent types of a tile of votes."""

    images: int
    types: int

    @classmethod
    def of(cls, call: EMCall, itemsize: int) -> Sizes:
        """Return the sizes for a call: as many images as the limit allows, so that passes are long."""
        types, side = call.weights.shape[2], call.weights.shape[3]
        per_type = call.fields.size * call.weights.shape[1] * side * side * call.fields.num_parents * itemsize
        images = max(1, _MAX_TILE_BYTES // (per_type * types))
        limit = max(1, _MAX_TILE_BYTES // per_type)
        return cls(even_size(call.poses.shape[0], images, 1), even_size(types, limit, 1))


class Block:
    """Votes of some images, and the passes over them."""

    def __init__(
        self, call: EMCall, images: slice, scratch: Scratch, sizes: Sizes, dtype: torch.dtype
    ) -> None:
        self.call, self.scratch, self.sizes = call, scratch, sizes
        self.fields, self.dtype = call.fields, dtype
        poses = call.poses[images].to(dtype)
        self.num_images = poses.shape[0]
        self.places, self.positions = self.fields.size, self.fields.num_parents
        self.child_types, self.types, self.side = call.weights.shape[1:4]
        self.num = self.num_images * self.positions
        self.seen = self._seen(poses)
        self.activations = self._of_places(call.activations[images].to(dtype).permute(2, 0, 1), 0.0)
        self._tile: slice | None = None

    # -- layouts

    def _seen(self, poses: Tensor) -> Tensor:
        """Return the poses in each parent's field, [I * S(row), S(x), n]; 0 where there is no child."""
        found = self.fields.at_places(poses.permute(2, 3, 4, 0, 1), 0.0)  # [T, row, x, b, K, P]
        return found.permute(4, 0, 1, 2, 3, 5).reshape(-1, self.side, self.num)

    def weights(self, types: slice) -> Tensor:
        """Return weights of parent types, once for each row of poses: [I * S(row), S(column) * c, S(x)]."""
        weights = self.call.weights[:, :, types].to(self.dtype).permute(0, 1, 4, 2, 3)  # [K, T, column, c, x]
        weights = weights[:, :, None].expand(self.places, -1, self.side, -1, -1, -1)
        return weights.reshape(len(self.seen), -1, self.side)

    def _of_places(self, of_children: Tensor, none: float) -> Tensor:
        """Return [I, n] of what children have one of, [T, b, N]; `none` where there is no child."""
        return self.fields.at_places(of_children, none).permute(2, 0, 1, 3).reshape(-1, self.num)

    def _over_parents(self, of_places: Tensor, none: float) -> Tensor:
        """Return [M, T, b, N] of [I, n]: for each child what its parents' places have; `none` where none."""
        by_place = of_places.view(self.places, self.child_types, self.num_images, self.positions)
        return self.fields.at_parents(by_place.permute(1, 2, 0, 3), none)

    # -- votes

    def _tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield parent types and their votes; those of a single tile are built once."""
        for types in slices(self.types, self.sizes.types):
            width = min(types.stop, self.types) - types.start
            votes = self.scratch.take("votes", len(self.seen), self.side * width, self.num)
            shaped = votes.view(-1, self.side**2, width, self.num)
            if self._tile != types:
                torch.bmm(self.weights(types), self.seen, out=votes)
                if self.call.offsets is not None:  # [K, H]
                    offsets = self.call.offsets.to(self.dtype).flatten(1)
                    by_place = shaped.unflatten(0, (self.places, self.child_types))
                    by_place += offsets[:, None, :, None, None]
                self._tile = types
            yield types, shaped

    def _slabs(self, votes: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield children of the fields, their votes, and a buffer of the same shape."""
        most = chunk_bytes(votes.device.type) // 4  # of votes and two buffers
        size = max(1, most // (votes[0].numel() * votes.element_size()))
        for part in slices(len(votes), size):
            yield part, votes[part], self.scratch.take("slab", *votes[part].shape)

    # -- passes

    def first_share(self) -> Tensor:
        """Return R of the first iteration, [I, C, n]: equal over all parents."""
        if self.call.options.competition == "position":
            number = torch.full((self.fields.num_children,), 1.0, dtype=self.dtype, device=self.seen.device)
        else:
            number = self.fields.num_seeing.to(self.seen.device, self.dtype)
        of_child = (1 / (number * self.types)).nan_to_num(posinf=0.0)
        of_child = of_child.expand(self.child_types, self.num_images, -1)
        return self._of_places(of_child, 0.0)[:, None].expand(-1, self.types, -1)

    def maximise(self, share: Tensor, inverse_temperature: float) -> Stats:
        """Do the M-step."""
        weight = torch.mul(share, self.activations[:, None], out=self._take("weight"))
        total = weight.sum(0)
        shape = self.side**2, self.types, self.num
        mean, variance = total.new_zeros(shape), total.new_zeros(shape)
        for types, votes in self._tiles():
            own, own_mean, own_variance = weight[:, types], mean[:, types], variance[:, types]
            over = total[types].clamp(min=torch.finfo(self.dtype).tiny)
            for part, some, buffer in self._slabs(votes):
                _add_products(own_mean, some, own[part, None], buffer)
            own_mean /= over
            for part, some, buffer in self._slabs(votes):
                deviation = self._like(buffer, "deviation")
                torch.sub(some, own_mean, out=deviation)
                product = torch.mul(deviation, own[part, None], out=buffer)
                _add_products(own_variance, deviation, product, buffer)
            own_variance /= over
        variance += self.call.options.variance_floor
        beta_u, beta_a = self.call.beta_u.to(self.dtype), self.call.beta_a.to(self.dtype)
        logs = variance.log().sum(0).mul_(0.5)
        cost = (logs + self.side**2 * beta_u[:, None]) * total
        return Stats(mean, variance, total, inverse_temperature * (beta_a[:, None] - cost))

    def expect(self, stats: Stats, name: str) -> Tensor:
        """Do the E-step: return R [I, C, n], in the buffer `name`."""
        return self.assign(self.logits(stats, name))

    def logits(self, stats: Stats, name: str) -> Tensor:
        """Return log activation plus log density but for a constant, [I, C, n], in the buffer `name`."""
        logits = self._take(name)
        scale = (0.5 / stats.variance).sqrt_()
        centre = -stats.mean * scale
        for types, votes in self._tiles():
            for part, some, buffer in self._slabs(votes):
                torch.addcmul(centre[:, types], some, scale[:, types], out=buffer)
                torch.sum(buffer.square_(), 1, out=logits[part, types])
        constant = functional.logsigmoid(stats.logit) - 0.5 * stats.variance.log().sum(0)
        return torch.sub(constant, logits, out=logits)

    def assign(self, logits: Tensor) -> Tensor:
        """Return R [I, C, n] by its logits, in their place."""
        if self.call.options.competition == "position":
            return logits.copy_(logits.softmax(1))
        of_child = self._over_parents(logits.logsumexp(1), float("-inf")).logsumexp(0)
        of_child = of_child.nan_to_num(neginf=0.0)  # of children that nobody sees
        return logits.sub_(self._of_places(of_child, float("inf"))[:, None]).exp_()

    def _like(self, buffer: Tensor, name: str) -> Tensor:
        return self.scratch.take(name, *buffer.shape)

    def _take(self, name: str) -> Tensor:
        return self.scratch.take(name, len(self.seen) // self.side, self.types, self.num)

    # -- backward

    def gradients(
        self, stats: list[Stats], d_mean: Tensor, d_logit: Tensor, into: Gradients
    ) -> tuple[Tensor, Tensor]:
        """Walk all iterations backward; return gradients of poses [b, N, T, S, S] and activations [b, N, T].

        d_mean, d_logit: gradients of the last iteration's mean and logit.
        """
        options = self.call.options
        shares = [self.first_share()]
        shares += [self.expect(each, f"share {number}") for number, each in enumerate(stats[:-1])]
        sums = _Sums(self, into)
        d_activations = torch.zeros_like(self.activations)
        d_variance = torch.zeros_like(d_mean)
        for number in reversed(range(len(stats))):
            now, share = stats[number], shares[number]
            d_total = self._of_cost(now, options.lambdas()[number], d_logit, d_variance, into)
            weight = torch.mul(share, self.activations[:, None], out=self._take("weight"))
            d_weight = self._of_means(now, weight, d_mean, d_variance, d_total, sums)
            d_activations += (d_weight * share).sum(1)
            if number:
                d_logits = self._of_share(share, d_weight.mul_(self.activations[:, None]))
                d_mean, d_variance, d_logit = self._of_density(stats[number - 1], d_logits, sums)
        d_poses = self._to_children(sums.finish())
        return d_poses, self._to_children_scalars(d_activations)

    def _of_cost(
        self, stats: Stats, inverse_temperature: float, d_logit: Tensor, d_variance: Tensor, into: Gradients
    ) -> Tensor:
        """Add to the gradients of betas and variance; return that of the total."""
        per_type = self.side**2
        d_cost = -inverse_temperature * d_logit
        into.beta_a.sub_(d_cost.sum(1))
        into.beta_u.add_((d_cost * stats.total).sum(1), alpha=per_type)
        d_variance += 0.5 * d_cost * stats.total / stats.variance
        logs = 0.5 * stats.variance.log().sum(0)
        return d_cost * (logs + per_type * self.call.beta_u.to(self.dtype)[:, None])

    def _of_means(
        self, stats: Stats, weight: Tensor, d_mean: Tensor, d_variance: Tensor, d_total: Tensor, sums: _Sums
    ) -> Tensor:
        """Return the gradient of the weights R a [I, C, n]; add to that of the votes."""
        d_weight = self._take("d_weight")
        over = stats.total.masked_fill(stats.total < least_total(self.dtype), float("inf"))
        linear, square = d_mean / over, d_variance / over
        constant = d_total - (square * (stats.variance - self.call.options.variance_floor)).sum(0)
        for types, votes in self._tiles():
            d_votes = sums.of(types)
            for part, some, buffer in self._slabs(votes):
                deviation = torch.sub(some, stats.mean[:, types], out=self._like(buffer, "deviation"))
                torch.addcmul(linear[:, types], deviation, square[:, types], out=buffer)
                torch.sum(buffer.mul_(deviation), 1, out=d_weight[part, types])
                slope = torch.addcmul(linear[:, types], deviation, square[:, types], value=2, out=buffer)
                d_votes[part].addcmul_(slope, weight[part, types][:, None])
            sums.flush(types)
        return d_weight.add_(constant)

    def _of_share(self, share: Tensor, d_share: Tensor) -> Tensor:
        """Return the gradient of the logits of R, in place of that of R."""
        if self.call.options.competition == "position":
            dots = (share * d_share).sum(1)
        else:
            of_child = self._over_parents((share * d_share).sum(1), 0.0).sum(0)
            dots = self._of_places(of_child, 0.0)
        return d_share.sub_(dots[:, None]).mul_(share)

    def _of_density(self, stats: Stats, d_logits: Tensor, sums: _Sums) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of an iteration's mean, variance and logit; add to that of the votes."""
        d_mean, d_variance = torch.zeros_like(stats.mean), torch.zeros_like(stats.mean)
        inverse = 1 / stats.variance
        total = d_logits.sum(0)
        for types, votes in self._tiles():
            d_votes = sums.of(types)
            for part, some, buffer in self._slabs(votes):
                deviation = torch.sub(some, stats.mean[:, types], out=self._like(buffer, "deviation"))
                product = torch.mul(deviation, d_logits[part, types][:, None], out=buffer)
                d_mean[:, types] += product.sum(0) if len(product) > 1 else product[0]
                d_votes[part].addcmul_(product, inverse[None, :, types], value=-1)
                _add_products(d_variance[:, types], deviation, product, buffer)
            sums.flush(types)
        d_mean *= inverse
        d_variance.mul_(inverse).sub_(total).mul_(0.5 * inverse)
        return d_mean, d_variance, total * (-stats.logit).sigmoid()

    def _to_children(self, d_seen: Tensor) -> Tensor:
        """Return the gradient of the poses, [b, N, T, S(row), S(x)], of that of the seen ones, as `_seen`."""
        d_seen = d_seen.view(self.places, self.child_types, self.side, self.side, self.num_images, -1)
        found = self.fields.sum_over_parents(d_seen.permute(1, 2, 3, 4, 0, 5))  # [T, row, x, b, N]
        return found.permute(3, 4, 0, 1, 2)

    def _to_children_scalars(self, of_places: Tensor) -> Tensor:
        """Return [b, N, T], sums over the parents of each child of [I, n]."""
        return self._over_parents(of_places, 0.0).sum(0).permute(1, 2, 0)


def _add_products(sums: Tensor, one: Tensor, other: Tensor, buffer: Tensor) -> None:
    """Add the products of two tensors [I, ...], summed over I, which `buffer` may hold: other may be it."""
    if len(one) == 1:
        sums.addcmul_(one[0], other[0])
    else:
        sums += torch.mul(one, other, out=buffer).sum(0)


class _Sums:
    """The gradient of the votes, summed over passes, and what becomes of it."""

    def __init__(self, block: Block, into: Gradients) -> None:
        self._block, self._into = block, into
        self._single = block.sizes.types >= block.types
        self._d_seen = torch.zeros_like(block.seen)
        self._votes: Tensor | None = None

    def of(self, types: slice) -> Tensor:
        """Return what a pass adds to, [I, H, c, n] of these parent types."""
        block = self._block
        width = min(types.stop, block.types) - types.start
        if self._votes is None:
            shape = len(block.seen) // block.side, block.side**2, width, block.num
            self._votes = block.scratch.take("d_votes", *shape).zero_()
        return self._votes

    def flush(self, types: slice) -> None:
        """End a pass over a tile: a single one waits for the last pass."""
        if not self._single:
            self._spend(types)

    def finish(self) -> Tensor:
        """Return the gradient of the seen poses, as `Block.seen`."""
        if self._single:
            self._spend(slice(0, self._block.types))
        return self._d_seen

    def _spend(self, types: slice) -> None:
        block, d_votes = self._block, self._votes
        if d_votes is None:  # no pass has run
            return
        flat = d_votes.view(len(block.seen), -1, block.num)  # [I * S(row), S(column) * c, n]
        torch.baddbmm(self._d_seen, block.weights(types).mT, flat, out=self._d_seen)
        found = torch.bmm(flat, block.seen.mT).view(-1, block.side, block.side, d_votes.shape[2], block.side)
        self._into.weights[:, :, types] += found.sum(1)
        self._votes = None
