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
from typing import NamedTuple

import torch
from torch import Tensor

from capsdist.routing.common.autograd import refusing
from capsdist.routing.common.operators import Signature, own_backward
from capsdist.routing.common.tiling import chunk_bytes, slices

__all__ = ["heinsen_sums"]

_BUFFERS = 5  # of the size of a tile's votes, that exist at once
_IMAGES = 16  # a tile reads its weights once for so many images


class _Operands(NamedTuple):
    """The operands of `heinsen_sums`, or their gradients, of which that of poses is [B, D, I]."""

    active: Tensor
    child_poses: Tensor
    packed_weights: Tensor
    vote_bias: Tensor
    beta_use: Tensor
    beta_ignore: Tensor
    offset: Tensor
    mean: Tensor
    precision: Tensor


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


def _build(given: _Operands, images: slice, of: slice) -> _Tile:
    """Build a tile of some images and children."""
    poses, weights = given.child_poses[images, of], given.packed_weights[..., of]
    difference = given.vote_bias[..., of] - given.mean[images][..., None]
    for dim in range(weights.shape[2]):
        difference.addcmul_(weights[:, :, dim], poses[:, None, None, :, dim])
    square = difference.square()
    logits = torch.matmul(given.precision[images].unsqueeze(2), square).squeeze(2)
    routed = logits.mul_(-0.5).add_(given.offset[images][..., None]).softmax(1)
    active = given.active[images, of]
    return _Tile(difference, square, routed, routed * active[:, None], active)


def _forward(*operands: Tensor) -> tuple[Tensor, ...]:
    """Return weight, score, first and second."""
    given, sums = _Operands(*operands), _empty(*operands)
    for each in sums:
        each.zero_()
    weight, score, first, second = sums
    for images, of in _tiles(given.active, given.packed_weights):
        tile = _build(given, images, of)
        use, ignore = given.beta_use[of].T, given.beta_ignore[of].T
        weight[images] += tile.use.sum(2)
        score[images] += ((use + ignore) * tile.use).sum(2) - tile.active @ ignore.T
        first[images] += torch.matmul(tile.difference, tile.use[..., None]).squeeze(3)
        second[images] += torch.matmul(tile.square, tile.use[..., None]).squeeze(3)
    return sums


def _backward(
    d_weight: Tensor, d_score: Tensor, d_first: Tensor, d_second: Tensor, *operands: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of the operands, that of poses as [B, D, I]."""
    given = _Operands(*operands)
    into = _Operands(
        *(each.new_zeros(each.shape) for each in given._replace(child_poses=given.child_poses.mT))
    )
    for images, of in _tiles(given.active, given.packed_weights):
        tile = _build(given, images, of)
        use, ignore = given.beta_use[of].T, given.beta_ignore[of].T
        of_score = d_score[images][..., None]  # [b, J, 1]
        of_use = torch.matmul(d_first[images].unsqueeze(2), tile.difference).squeeze(2)
        of_use += torch.matmul(d_second[images].unsqueeze(2), tile.square).squeeze(2)
        of_use += d_weight[images][..., None] + of_score * (use + ignore)
        into.active[images, of] += (tile.routed * of_use - of_score * ignore).sum(1)
        into.beta_use[of] += (of_score * tile.use).sum(0).T
        into.beta_ignore[of] += (of_score * (tile.use - tile.active[:, None])).sum(0).T
        shared = of_use * tile.use
        of_logits = shared - tile.routed * shared.sum(1, keepdim=True)
        into.offset[images] += of_logits.sum(2)
        into.precision[images] -= 0.5 * torch.matmul(tile.square, of_logits[..., None]).squeeze(3)
        of_votes = (2 * d_second[images])[..., None] * tile.use.unsqueeze(2)
        of_votes -= given.precision[images][..., None] * of_logits.unsqueeze(2)
        of_votes *= tile.difference
        of_votes.addcmul_(d_first[images][..., None], tile.use.unsqueeze(2))
        into.mean[images] -= of_votes.sum(3)
        into.vote_bias[..., of] += of_votes.sum(0)
        weights, poses = given.packed_weights[..., of], given.child_poses[images, of]
        into.child_poses[images, :, of] += torch.einsum("bjem,jedm->bdm", of_votes, weights)
        into.packed_weights[..., of] += torch.einsum("bjem,bmd->jedm", of_votes, poses)
    return tuple(into)


def _empty(*operands: Tensor) -> tuple[Tensor, ...]:
    """Return memory for what `_forward` returns."""
    given = _Operands(*operands)
    return tuple(each.new_empty(each.shape) for each in (given.offset, given.offset, given.mean, given.mean))


_run = own_backward(
    "heinsen_sums",
    _forward,
    _backward,
    _empty,
    refusing("routing without votes is differentiable once, backward; choose backend='reference'"),
    Signature(_Operands._fields, num_results=4, transposed=("child_poses",)),
    function=None,
)


def heinsen_sums(*operands: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weight and score [B, J], first and second [B, J, E] of one iteration, see the head of the file.

    operands, all fp32 or all float64: f [B, I], poses [B, I, D], packed weights [J, E, D, I], vote bias
    [J, E, I], beta_use and beta_ignore [I, J], offset [B, J], centre and precision [B, J, E].

    Raises:
        NotImplementedError: a second derivative is asked for.
    """
    return _run(*operands)
