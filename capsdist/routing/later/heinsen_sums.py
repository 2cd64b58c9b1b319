"""The sums over children of an iteration of Heinsen routing, tile by tile, with their own backward pass.

With x_ij = V_ij - centre_j, everything a tile needs is built from its poses and weights, in both passes:

    L_ij = offset_j - 1/2 sum_e precision_je x_ije^2,  R_ij = softmax over j of L_ij,  q_ij = f_i R_ij
    weight_j = sum_i q,  score_j = sum_i (use + ignore) q - ignore f,
    first_j = sum_i q x,  second_j = sum_i q x^2

    backward, of their gradients dn, da, d1, d2:
    dq_ij = dn_j + da_j (use + ignore)_ij + sum_e x (d1 + d2 x),  dL = R (f dq - sum_j R f dq)
    df_i = sum_j R dq - da_j ignore_ij,  duse = sum_b da q,  dignore = sum_b da (q - f)
    dx = q d1 + x (2 q d2 - precision dL),  doffset = sum_i dL,  dprecision = -1/2 sum_i dL x^2

The gradient of votes is dx, that of the centre is -dx summed over children. Children are innermost in every
buffer.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension; b and m of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from capsdist.routing.common.autograd import refusing
from capsdist.routing.common.tiling import chunk_bytes, slices

__all__ = ["heinsen_sums"]

_BUFFERS = 5  # of the size of a tile's votes, that exist at once
_IMAGES = 16  # a tile reads its weights once for so many images


class _Tile(NamedTuple):
    """What both passes build of some images and children: x and its square [b, J, E, m], R, q and f."""

    difference: Tensor
    square: Tensor
    routed: Tensor
    use: Tensor
    active: Tensor


def _tiles(active: Tensor, packed_weights: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut the images and children of [B, I], so that the buffers of a tile stay in the cache."""
    num_parents, parent_dim = packed_weights.shape[:2]
    numbers = num_parents * parent_dim * _BUFFERS * active.element_size()
    room = max(1, chunk_bytes(active.device.type) // numbers)
    children = max(1, min(active.shape[1], room // min(_IMAGES, max(1, len(active)))))
    for tile in slices(active.shape[1], children):
        for images in slices(len(active), max(1, room // children)):
            yield images, tile


def _build(
    active: Tensor, child_poses: Tensor, packed_weights: Tensor, vote_bias: Tensor, states: tuple[Tensor, ...]
) -> _Tile:
    """Build a tile of its parts [b, m], [b, m, D], [J, E, D, m], [J, E, m], and states of its images."""
    offset, mean, precision = states
    difference = vote_bias - mean[..., None]
    for dim in range(packed_weights.shape[2]):
        difference.addcmul_(packed_weights[:, :, dim], child_poses[:, None, None, :, dim])
    square = difference.square()
    logits = torch.matmul(precision.unsqueeze(2), square).squeeze(2).mul_(-0.5).add_(offset[..., None])
    routed = logits.softmax(1)
    return _Tile(difference, square, routed, routed * active[:, None], active)


def _forward(
    active: Tensor,
    child_poses: Tensor,
    packed_weights: Tensor,
    vote_bias: Tensor,
    beta_use: Tensor,
    beta_ignore: Tensor,
    offset: Tensor,
    mean: Tensor,
    precision: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight, score = torch.zeros_like(offset), torch.zeros_like(offset)
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for images, of in _tiles(active, packed_weights):
        states = offset[images], mean[images], precision[images]
        parts = active[images, of], child_poses[images, of], packed_weights[..., of], vote_bias[..., of]
        tile = _build(*parts, states)
        use, ignore = beta_use[of].T, beta_ignore[of].T
        weight[images] += tile.use.sum(2)
        score[images] += ((use + ignore) * tile.use).sum(2) - tile.active @ ignore.T
        first[images] += torch.matmul(tile.difference, tile.use[..., None]).squeeze(3)
        second[images] += torch.matmul(tile.square, tile.use[..., None]).squeeze(3)
    return weight, score, first, second


def _backward(
    d_weight: Tensor,
    d_score: Tensor,
    d_first: Tensor,
    d_second: Tensor,
    active: Tensor,
    child_poses: Tensor,
    packed_weights: Tensor,
    vote_bias: Tensor,
    beta_use: Tensor,
    beta_ignore: Tensor,
    offset: Tensor,
    mean: Tensor,
    precision: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the operands, that of poses as [B, D, I]."""
    operands = active, child_poses, packed_weights, vote_bias, beta_use, beta_ignore, offset, mean, precision
    found = _empty_gradients(*operands)
    d_active, d_poses, d_weights, d_bias, d_use, d_ignore, d_offset, d_mean, d_precision = found
    for each in found:
        each.zero_()
    for images, of in _tiles(active, packed_weights):
        states = offset[images], mean[images], precision[images]
        poses, weights = child_poses[images, of], packed_weights[..., of]
        tile = _build(active[images, of], poses, weights, vote_bias[..., of], states)
        use, ignore = beta_use[of].T, beta_ignore[of].T
        of_score = d_score[images][..., None]  # [b, J, 1]
        of_use = torch.matmul(d_first[images].unsqueeze(2), tile.difference).squeeze(2)
        of_use += torch.matmul(d_second[images].unsqueeze(2), tile.square).squeeze(2)
        of_use += d_weight[images][..., None] + of_score * (use + ignore)
        d_active[images, of] += (tile.routed * of_use - of_score * ignore).sum(1)
        d_use[of] += (of_score * tile.use).sum(0).T
        d_ignore[of] += (of_score * (tile.use - tile.active[:, None])).sum(0).T
        shared = of_use * tile.use
        of_logits = shared - tile.routed * shared.sum(1, keepdim=True)
        d_offset[images] += of_logits.sum(2)
        d_precision[images] -= 0.5 * torch.matmul(tile.square, of_logits[..., None]).squeeze(3)
        of_votes = (2 * d_second[images])[..., None] * tile.use.unsqueeze(2)
        of_votes -= precision[images][..., None] * of_logits.unsqueeze(2)
        of_votes *= tile.difference
        of_votes.addcmul_(d_first[images][..., None], tile.use.unsqueeze(2))
        d_mean[images] -= of_votes.sum(3)
        d_bias[..., of] += of_votes.sum(0)
        d_poses[images, :, of] += torch.einsum("bjem,jedm->bdm", of_votes, weights)
        d_weights[..., of] += torch.einsum("bjem,bmd->jedm", of_votes, poses)
    return found


def _empty_gradients(
    active: Tensor, child_poses: Tensor, *others: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return memory for the gradients, each contiguous in the shape of its operand, poses as [B, D, I]."""
    one, two, *rest = (each.new_empty(each.shape) for each in (active, child_poses.transpose(1, 2), *others))
    three, four, five, six, seven, eight, nine = rest
    return one, two, three, four, five, six, seven, eight, nine


_operator = torch.library.custom_op("capsdist::heinsen_sums", _forward, mutates_args=())
_backward_operator = torch.library.custom_op("capsdist::heinsen_sums_backward", _backward, mutates_args=())
_backward_operator.register_autograd(
    refusing("routing without votes is differentiable once, backward; choose backend='reference'")
)


@_operator.register_fake
def _(*operands: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    offset, mean, _ = operands[6:]
    first, second = (mean.new_empty(mean.shape) for _ in range(2))
    return offset.new_empty(offset.shape), offset.new_empty(offset.shape), first, second


@_backward_operator.register_fake
def _(*operands: Tensor) -> tuple[Tensor, ...]:
    return _empty_gradients(*operands[4:])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    """Save the operands themselves."""
    ctx.save_for_backward(*inputs)


@partial(_operator.register_autograd, setup_context=_keep)
def _(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
    d_active, d_poses, *others = _backward_operator(*grads, *ctx.saved_tensors)
    return d_active, d_poses.transpose(1, 2), *others


def heinsen_sums(*operands: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weight and score [B, J], first and second [B, J, E] of one iteration, see the head of the file.

    operands, all fp32 or all float64: f [B, I], poses [B, I, D], packed weights [J, E, D, I], vote bias
    [J, E, I], beta_use and beta_ignore [I, J], offset [B, J], centre and precision [B, J, E].

    Raises:
        NotImplementedError: a second derivative is asked for.
    """
    return _operator(*operands)
