"""Trace EM routing: how far logits move, how undecided children are, which types of parents get them.

Shape letters: B images, N child positions, T child types, P parent positions, K places of a field, C parent
types, R iterations; b images of a block, n = b P, I = K T.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from capsdist.routing.common.autograd import refuse_transforms
from capsdist.routing.common.choices import Choices
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.em.api import check_call
from capsdist.routing.em.options import EMCall
from capsdist.routing.em.streamed import blocks_of
from capsdist.routing.em.streamed_passes import Block

__all__ = ["EMTrace", "trace_em"]


class EMTrace(NamedTuple):
    """What each iteration did to each image; a mean over images is the mean over the batch.

    The coupling of an iteration is the R_ij that its M-step begins with: uniform in the first, of the E-step
    before in all others. It does not depend on the activation of the child itself.

    logit_change [R - 1, B]: of each E-step, mean over pairs of child and parent that sees it of how far it
        moves their logit, log a_j + log p_j(V_ij) less its mean over the child's parents, without its sign.
        The first moves it from 0.
    relative_entropy [R, B]: mean over children of the entropy of their coupling, over its largest, ln(number
        of choices): 1 if they are undecided, 0 if each has one parent. A child's choices are the parents of
        all types and positions that see it; with `competition="position"` the types, at each of its
        positions. A child with one choice is left out; 0 where nobody has more.
    type_shares [R, B, C]: the share of all children, or of all their positions, that a parent type gets;
        their sum is 1.
    """

    logit_change: Tensor
    relative_entropy: Tensor
    type_shares: Tensor


@torch.no_grad()
def trace_em(call: EMCall) -> EMTrace:
    """Route as `route_em_call` does and return what each iteration did, in fp32 (float64 in float64).

    Votes are those of a block of images, and of a tile of parent types, as of the streamed backend.

    Raises:
        ShapeError: as `route_em`.
        NotImplementedError: under torch.func or forward mode, where what it returns would pass for constant.

    Cost: that of the streamed backend's forward pass, no gradients.
    """
    refuse_transforms("trace_em")
    check_call(call)
    rounds, num_images, dtype = call.options.iterations, len(call.poses), wide_dtype(call.poses)
    found = EMTrace(
        call.poses.new_empty(rounds - 1, num_images, dtype=dtype),
        call.poses.new_empty(rounds, num_images, dtype=dtype),
        call.poses.new_empty(rounds, num_images, call.weights.shape[2], dtype=dtype),
    )
    with without_autocast(call.poses):
        for images, block in blocks_of(call, dtype):
            _trace_block(block, EMTrace(*(each[:, images] for each in found)))
    return found


def _trace_block(block: Block, found: EMTrace) -> None:
    """Write the trace of a block to `found`, whose images are its own."""
    options, types, num_types = block.call.options, block.child_types, block.types
    choices = Choices(block.fields, options.competition, num_types, block.seen)
    num_pairs = types * num_types * choices.seen.sum()
    lambdas, share, before = options.lambdas(), block.first_share(), 0.0
    for step in range(options.iterations):
        if step:
            logits = block.logits(block.maximise(share, lambdas[step - 1]), "share")
            centred = choices.centred(_of_children(block, logits))
            found.logit_change[step - 1] = (centred - before).abs().sum((0, 2, 3, 4)) / num_pairs
            share, before = block.assign(logits), centred
        coupling = _of_children(block, share).where(choices.seen[..., None] > 0, 0.0)
        found.relative_entropy[step] = choices.relative_entropy(coupling).mean(0)
        found.type_shares[step] = coupling.sum((0, 2, 3)) / (types * choices.num_dividing)


def _of_children(block: Block, of_pairs: Tensor) -> Tensor:
    """Return a view [T, b, K, P, C] of what pairs of child and parent have, [I, C, n]."""
    by_place = of_pairs.unflatten(0, (block.places, -1)).unflatten(-1, (-1, block.positions))
    return by_place.permute(1, 3, 0, 4, 2)
