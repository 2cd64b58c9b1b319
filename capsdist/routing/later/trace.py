"""Trace later routing: how far logits move, how undecided children are, which parents get them.

The coupling of an algorithm is its softmax over parents of the logits of each child:

    self-attention    b_ij, of one pass
    inverted          a_ij of each pass, 0 in the first
    Heinsen           log f(a_j) P_j(V_ij) of the pass before, 0 in the first

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, R passes; b images of a
block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from capsdist.routing.common.autograd import refuse_transforms
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.common.tiling import chunk_bytes, slices
from capsdist.routing.later.forms import check_operands, linear_votes
from capsdist.routing.later.heinsen import heinsen_states

__all__ = ["LaterTrace", "trace_attention", "trace_heinsen", "trace_inverted"]


class LaterTrace(NamedTuple):
    """What each pass did to each image; a mean over images is the mean over the batch.

    logit_change [R - 1, B]: of each pass but the first, mean over children and parents of how far it moves a
        logit, less the mean over the child's parents, without its sign.
    relative_entropy [R, B]: mean over children of the entropy of their coupling, over its largest, ln J: 1 if
        they are undecided, 0 if each has one parent; 0 of a single parent.
    parent_shares [R, B, J]: the share of all children that a parent gets; their sum is 1.
    """

    logit_change: Tensor
    relative_entropy: Tensor
    parent_shares: Tensor


@torch.no_grad()
def trace_attention(child_poses: Tensor, packed_weights: Tensor) -> LaterTrace:
    """Return what the one pass of `route_attention` did: R = 1.

    Log priors are added to the coupling, which need not sum to 1 then, and are left out.

    Args:
        child_poses: [B, I, D], of 16, 32 or 64 bits. Float64 is computed in float64, all else in fp32.
        packed_weights: [J, E, D, I].

    Raises:
        ShapeError: a shape, dtype or device that cannot be.
        NotImplementedError: under torch.func or forward mode, where what it returns would pass for constant.

    Cost: 2 matrix products of 2 B I J D E FLOP, no gradients. Scratch: that of a chunk (`chunk_bytes`),
    or J D I numbers for one image.
    """
    refuse_transforms("trace_attention")
    poses, weights = _wide(child_poses, packed_weights)

    def logits(images: slice) -> Iterator[Tensor]:
        sums = linear_votes(poses[images], weights)
        yield _agreement(poses[images], weights, sums / math.sqrt(sums.shape[2]))

    return _trace(poses, weights[:, 0], logits)


@torch.no_grad()
def trace_inverted(passes: Sequence[tuple[Tensor, Tensor | None]], packed_weights: Tensor) -> LaterTrace:
    """Return what each pass of `update_inverted` did.

    Args:
        passes: child poses [B, I, D] and parent poses [B, J, E] or None that each pass is called with.
        packed_weights: [J, E, D, I].

    Raises:
        ShapeError, NotImplementedError: as `trace_attention`.

    Cost: a matrix product of 2 B I J D E FLOP for each pass with parent poses; scratch as
    `trace_attention`.
    """
    refuse_transforms("trace_inverted")
    states = [None if parents is None else parents.to(wide_dtype(parents)) for _, parents in passes]
    children = [_wide(poses, packed_weights)[0] for poses, _ in passes]
    weights = packed_weights.to(children[0].dtype)

    def logits(images: slice) -> Iterator[Tensor]:
        for poses, state in zip(children, states, strict=True):
            if state is None:
                yield poses.new_zeros(len(poses[images]), len(weights), poses.shape[1])
            else:
                yield _agreement(poses[images], weights, state[images])

    return _trace(children[0], weights[:, 0], logits)


@torch.no_grad()
def trace_heinsen(
    child_poses: Tensor,
    packed_weights: Tensor,
    vote_bias: Tensor,
    beta_use: Tensor,
    beta_ignore: Tensor,
    iterations: int = 3,
) -> LaterTrace:
    """Route as `route_heinsen` does, which says what the arguments are, and return what each iteration did.

    Raises:
        ShapeError, NotImplementedError: as `trace_attention`.

    Cost: that of the streamed form, and all votes once more. Scratch: a few chunks, or votes of one image.
    """
    refuse_transforms("trace_heinsen")
    operands = _wide(child_poses, packed_weights, vote_bias, beta_use, beta_ignore)
    poses, weights, bias, *_ = operands
    with without_autocast(child_poses):
        states = heinsen_states(*operands, iterations=iterations)

    def logits(images: slice) -> Iterator[Tensor]:
        votes = torch.einsum("bid,jedi->bjei", poses[images], weights) + bias
        for offset, mean, precision in states:
            squares = (votes - mean[images][..., None]).square_()
            densities = torch.matmul(precision[images].unsqueeze(2), squares).squeeze(2)
            yield offset[images][..., None] - 0.5 * densities

    return _trace(poses, bias, logits)


def _wide(child_poses: Tensor, packed_weights: Tensor, *others: Tensor) -> list[Tensor]:
    """Return the operands as they are computed with; raise ShapeError where they do not fit."""
    operands = child_poses, packed_weights, *others
    check_operands(*operands)
    return [each.to(wide_dtype(child_poses)) for each in operands]


def _agreement(child_poses: Tensor, packed_weights: Tensor, states: Tensor) -> Tensor:
    """Return votes_ij . state_j [b, J, I] of states [b, J, E]: the products are W_ij^T state_j, not votes."""
    products = torch.einsum("jedi,bje->bjdi", packed_weights, states)
    return products.mul_(child_poses.mT[:, None]).sum(2)


def _trace(poses: Tensor, of_image: Tensor, logits: Callable[[slice], Iterator[Tensor]]) -> LaterTrace:
    """Return the trace of all images, by the logits [b, J, I] of each pass that `logits` yields of a block.

    of_image: as large as the largest tensor that one image needs.
    """
    size = max(1, chunk_bytes(poses.device.type) // (of_image.numel() * poses.element_size()))
    with without_autocast(poses):
        blocks = [_measure(logits(images)) for images in slices(len(poses), size)]
    return LaterTrace(*(torch.cat(each, 1) for each in zip(*blocks, strict=True)))


def _measure(passes: Iterator[Tensor]) -> LaterTrace:
    """Return the trace of a block by the logits [b, J, I] of each pass."""
    changes, entropies, shares, before = [], [], [], None
    for logits in passes:
        coupling, centred = logits.softmax(1), logits - logits.mean(1, keepdim=True)
        entropy = torch.special.entr(coupling).sum(1).mean(1)
        entropies.append(entropy / math.log(max(2, logits.shape[1])))
        shares.append(coupling.mean(2))
        if before is not None:
            changes.append((centred - before).abs().mean((1, 2)))
        before = centred
    entropy = torch.stack(entropies)
    return LaterTrace(torch.stack(changes) if changes else entropy[:0], entropy, torch.stack(shares))
