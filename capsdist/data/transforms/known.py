"""Pairs of an image and a copy of it under a shift that the network is told (transforming auto-encoders)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from capsdist.data.batch import Batch
from capsdist.data.transforms.geometry import shifted
from capsdist.data.transforms.random_numbers import Draw, Draws

__all__ = ["known_shifts", "with_shifted"]


def known_shifts(sample_ids: Tensor, seed: int, epoch: int | Tensor, limit: int) -> Tensor:
    """Return the shift of each sample, int64 [b, 2]: pixels to the right and down, each in -limit .. limit.

    All are equally likely, and a pure function of (seed, epoch, sample id): neither batches nor ranks change
    them, a resumed run draws those of the whole one, and in evaluation, epoch 0, they are always the same.
    """
    draws = Draws(sample_ids, seed, epoch)
    drawn = [draws.below(draw, 2 * limit + 1) for draw in (Draw.KNOWN_RIGHT, Draw.KNOWN_DOWN)]
    return torch.stack(drawn, 1) - limit


def with_shifted(batch: Batch, images: Tensor, seed: int, limit: int) -> Batch:
    """Return `batch` with known shifts, and the copies of `images` under them to be drawn.

    images: float [b, C, H, W], those of the batch after the transform. What left an image does not come back.
    """
    shifts = known_shifts(batch.sample_ids, seed, batch.epoch, limit)
    return replace(batch, known_shifts=shifts.to(images.dtype), shifted=shifted(images, shifts, limit))
