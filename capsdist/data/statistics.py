"""Mean and standard deviation of the pixels of a split, a number for each channel."""

from __future__ import annotations

import os

import torch

from capsdist.data.pipeline import eval_batches

__all__ = ["channel_statistics"]


def channel_statistics(
    folder: str | os.PathLike[str], *, decode_size: int | tuple[int, int] = 0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means and standard deviations of the channels of all images as stored, where 255 counts as 1.

    They are what `data.normalise_mean` and `data.normalise_std` take, with 6 digits. The split is read once,
    wholly; sums are exact. decode_size: side, or height and width, that encoded images are decoded to.

    Raises:
        DataError: it cannot be read.
    """
    sums: torch.Tensor | None = None
    num = 0
    for batch in eval_batches(folder, batch_size=256, decode_size=decode_size):
        pixels = batch.images[batch.weights > 0].long().transpose(0, 1).flatten(1)  # [C, n * H * W]
        found = torch.stack([pixels.sum(1), pixels.square().sum(1)])
        sums = found if sums is None else sums + found
        num += pixels.shape[1]
    assert sums is not None  # an index has samples
    totals = [[total / 255**power for total in row] for power, row in enumerate(sums.tolist(), 1)]
    means = [total / num for total in totals[0]]
    deviations = [
        max(square / num - mean**2, 0.0) ** 0.5 for mean, square in zip(means, totals[1], strict=True)
    ]
    return tuple(round(mean, 6) for mean in means), tuple(round(each, 6) for each in deviations)
