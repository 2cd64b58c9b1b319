"""MNIST at all 169 positions in 40x40: what networks are trained on before they are tested on affNIST.

Sabour, Frosst, Hinton 2017, section 5.2; the authors' generator with shift 6 and pad 6: a digit of 28x28 lies
0 to 12 pixels from the top and from the left. 60,000 * 169 training and 10,000 * 169 test images are
computed when they are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from capsdist.data.format.samples import FieldType, GeneratedSamples, Samples
from capsdist.data.sets.mnist import load_mnist
from capsdist.data.sets.spec import DatasetSpec

__all__ = ["AFFNIST_TRAIN", "NUM_POSITIONS", "placed"]

_SIDE = 40
_MAX_SHIFT = 12
NUM_POSITIONS = (_MAX_SHIFT + 1) ** 2


def placed(digits: Samples) -> Samples:
    """Return `digits`, image uint8 (1, 28, 28), at every position in 40x40, with the fields of all positions.

    Sample p * N + d is digit d at position (p + d) modulo 169, so that neighbours in storage are of different
    digits and positions. Further fields, int64: digit (d), row and column (pixels above and left of it).
    """
    arrays = digits.read(0, len(digits))
    images, labels = arrays["image"], arrays["label"]
    down, right = np.arange(images.shape[2]), np.arange(images.shape[3])

    def make(ids: np.ndarray) -> dict[str, np.ndarray]:
        digit = ids % len(images)
        row, column = np.divmod((ids // len(images) + digit) % NUM_POSITIONS, _MAX_SHIFT + 1)
        image = np.zeros((len(ids), 1, _SIDE, _SIDE), np.uint8)
        rows, columns = row[:, None] + down, column[:, None] + right
        image[np.arange(len(ids))[:, None, None], 0, rows[:, :, None], columns[:, None, :]] = images[digit, 0]
        return {"image": image, "label": labels[digit], "digit": digit, "row": row, "column": column}

    number = FieldType(np.dtype(np.int64))
    fields = {"image": FieldType(np.dtype(np.uint8), (1, _SIDE, _SIDE)), "label": number}
    fields |= {"digit": number, "row": number, "column": number}
    return GeneratedSamples(len(images) * NUM_POSITIONS, fields, make)


def _load(source: Path | None, folder: Path, command: str) -> dict[str, Samples]:
    digits = load_mnist(source, folder.with_name("mnist"), command)
    return {split: placed(samples) for split, samples in digits.items()}


AFFNIST_TRAIN = DatasetSpec(
    name="affnist_train",
    licence="made from MNIST: CC BY-SA 3.0 (LeCun, Cortes, Burges)",
    title="MNIST at all 169 positions in 40x40 (10,140,000 + 1,690,000 images), to train for affNIST",
    classes=tuple("0123456789"),
    load=_load,
    source="As for mnist; the images are made from it.",
    together=("digit",),
)
