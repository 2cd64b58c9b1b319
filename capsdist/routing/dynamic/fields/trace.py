"""Trace routing between grids: how far logits move, how undecided children are, which types get them.

Shape letters: B images, N child positions, T child types, P parent positions, K places of a field, J parent
types, D child dimension, E parent dimension, R iterations; b images of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from capsdist.ops import squash
from capsdist.routing.common.autograd import refuse_transforms
from capsdist.routing.common.choices import Choices
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.common.sharing import share
from capsdist.routing.common.tiling import MIB, slices
from capsdist.routing.dynamic.fields.api import check_call
from capsdist.routing.dynamic.fields.call import FieldCall

__all__ = ["FieldTrace", "trace_fields"]

_BLOCK_BYTES = 32 * MIB  # of the product of one child type with all parents of a block of images


class FieldTrace(NamedTuple):
    """What each iteration did to each image; a mean over images is the mean over the batch.

    logit_change [R, B]: mean over pairs of child and parent that sees it of how far the iteration's agreement
        moves their logit, |vote . pose|; only one more iteration would use that of the last.
    relative_entropy [R, B]: mean over children of the entropy of their coupling, over its largest, ln(number
        of choices): 1 if they are undecided, 0 if each has one parent. A child's choices are the parents of
        all types and positions that see it; with `competition="position"` the types, at each of its
        positions; and none-of-the-above. 0 where nobody has a choice.
    type_shares [R, B, J]: the share of all children, or of all their positions, that a parent type gets;
        their sum is 1, with none-of-the-above 1 less its share.
    """

    logit_change: Tensor
    relative_entropy: Tensor
    type_shares: Tensor


@torch.no_grad()
def trace_fields(call: FieldCall) -> FieldTrace:
    """Route as `route_field_call` does and return what each iteration did, in fp32 (float64 in float64).

    Votes are not stored: a child type is taken at a time, and a block of images.

    Raises:
        ShapeError: as `route_fields`.
        NotImplementedError: under torch.func or forward mode, where what it returns would pass for constant.

    Cost: 3 R products of 2 B K T D J E P FLOP, no gradients.
    """
    refuse_transforms("trace_fields")
    check_call(call)
    fields, dtype = call.fields, wide_dtype(call.child_poses, call.packed_weights)
    num_parents, _, child_dim, _ = call.packed_weights.shape
    of_image = fields.size * fields.num_parents * num_parents * child_dim * dtype.itemsize
    with without_autocast(call.child_poses):
        wide = replace(
            call,
            packed_weights=call.packed_weights.to(dtype),
            bias=None if call.bias is None else call.bias.to(dtype),
            log_priors=None if call.log_priors is None else call.log_priors.to(dtype),
        )
        found = [
            _traced(replace(wide, child_poses=call.child_poses[images].to(dtype)))
            for images in slices(len(call.child_poses), max(1, _BLOCK_BYTES // of_image))
        ]
    return FieldTrace(*(torch.cat(each, 1) for each in zip(*found, strict=True)))


def _traced(call: FieldCall) -> FieldTrace:
    block, rows = _Block(call), []
    for _ in range(call.options.iterations):
        totals = torch.zeros_like(block.state)
        entropy, shares = totals.new_zeros(len(totals)), totals.new_zeros(len(totals), totals.shape[2])
        for logits, add_to in block.by_type(block.state, priors=True):
            coupling = block.coupling(logits)
            add_to(totals, coupling)
            entropy += block.choices.relative_entropy(coupling)
            shares += coupling.sum((1, 2))
        pose = squash(totals if call.bias is None else totals + call.bias)
        change = totals.new_zeros(len(totals))
        for agreement, _ in block.by_type(pose, priors=False):
            change += agreement.abs().mul(block.choices.seen[..., None]).sum((1, 2, 3))
        num_pairs = block.num_types * block.choices.seen.sum()
        rows.append((change / (num_pairs * totals.shape[2]), entropy, shares))
        block.state += pose
    change, entropy, shares = (torch.stack(each) for each in zip(*rows, strict=True))
    return FieldTrace(
        change, entropy / block.num_types, shares / (block.num_types * block.choices.num_dividing)
    )


class _Block:
    """Some images of a call: patches of children, and the state V, the sum of poses of iterations."""

    def __init__(self, call: FieldCall) -> None:
        fields, poses = call.fields, call.child_poses
        self.call, self.num_types = call, poses.shape[2]
        self.patches = fields.at_places(poses.permute(2, 3, 0, 1), 0.0)  # [T, D, b, K, P]
        num_parents, parent_dim = call.packed_weights.shape[:2]
        self.state = poses.new_zeros(len(poses), fields.num_parents, num_parents, parent_dim)
        none = call.options.none_of_the_above
        self.choices = Choices(fields, call.competition, num_parents, poses, none_of_the_above=none)

    def by_type(self, poses: Tensor, *, priors: bool) -> Iterator[tuple[Tensor, _AddTo]]:
        """Yield agreement of the children of each type with poses [b, P, J, E], [b, K, P, J], and `_AddTo`.

        priors: add the learned logits.
        """
        unpacked, own = self.call.unpacked, self.call.log_priors
        for number, patches in enumerate(self.patches):
            weights = unpacked[:, :, :, number]  # [J, E, D, K]
            products = torch.einsum("jedk,bpje->bkpjd", weights, poses)
            agreement = torch.einsum("bkpjd,dbkp->bkpj", products, patches)
            if priors and own is not None:
                agreement += own.unflatten(0, (-1, self.call.fields.size))[number][:, None]
            yield agreement, _AddTo(weights, patches)

    def coupling(self, logits: Tensor) -> Tensor:
        """Return how children of a type divide themselves by logits [b, K, P, J]; 0 without a child."""
        none = self.call.options.none_of_the_above
        found = share(logits[..., None, :], self.call.fields, self.call.competition, none_of_the_above=none)
        return found[..., 0, :].where(self.choices.seen[..., None] > 0, 0.0)


class _AddTo:
    """Adds what the children of one type give to totals."""

    def __init__(self, weights: Tensor, patches: Tensor) -> None:
        self._weights, self._patches = weights, patches

    def __call__(self, totals: Tensor, coupling: Tensor) -> None:
        """Add to totals [b, P, J, E] by the coupling [b, K, P, J]."""
        weighted = torch.einsum("bkpj,dbkp->bkpjd", coupling, self._patches)
        totals += torch.einsum("jedk,bkpjd->bpje", self._weights, weighted)
