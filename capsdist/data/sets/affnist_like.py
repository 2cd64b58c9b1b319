"""A set GENERATED from MNIST like affNIST's test set, for when the original cannot be had: it is not affNIST.

Ranges as published for affNIST (Tieleman 2013), all uniform and independent: rotation -20 to 20 degrees,
shearing -0.2 to 0.2, vertical and horizontal scaling 0.8 to 1.2, and every translation that keeps the whole
digit in 40x40. Their order, as listed, the axis of the shearing (columns shift rows) and the bilinear
interpolation are ours. A figure made from this set says so: results differ from those on affNIST.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash

from capsdist.data.format.samples import FieldType, GeneratedSamples, Samples
from capsdist.data.sets.mnist import load_mnist
from capsdist.data.sets.spec import SPLITS, DatasetSpec

__all__ = ["AFFNIST_LIKE", "transform", "transformations", "transformed"]

_SIDE = 40
_VERSIONS = 32
_DRAWS = 8  # 64-bit numbers for a sample: two blocks of Philox, of which six are used
_MAX_DEGREES, _MAX_SHEAR, _MAX_SCALING = 20.0, 0.2, 0.2
_KEY = int.from_bytes(xxhash.xxh3_128_digest(b"affnist_like"), "big")


def transformations(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what is drawn for samples `ids`, consecutive: matrices float64 [n,2,2], and [n,2] in [0, 1).

    A matrix maps (row, column) relative to the centre of a digit to that relative to the centre of the image.
    The second array says where the translation lies in its range. Numbers depend on a sample's id only.
    """
    blocks = _DRAWS // 4 * int(ids[0]) if len(ids) else 0
    raw = np.random.Philox(key=_KEY, counter=blocks).random_raw(_DRAWS * len(ids)).reshape(-1, _DRAWS)
    uniform = (raw >> 11) * 2.0**-53
    angle, shear, vertical, horizontal = (2 * uniform[:, :4] - 1).T
    angle = np.deg2rad(_MAX_DEGREES * angle)
    cosine, sine, zeros, ones = np.cos(angle), np.sin(angle), np.zeros(len(ids)), np.ones(len(ids))
    rotation = np.stack([cosine, -sine, sine, cosine], axis=-1).reshape(-1, 2, 2)
    shearing = np.stack([ones, _MAX_SHEAR * shear, zeros, ones], axis=-1).reshape(-1, 2, 2)
    scaling = 1 + _MAX_SCALING * np.stack([vertical, horizontal], axis=-1)
    return scaling[:, :, None] * (shearing @ rotation), uniform[:, 4:6]


def transform(digit: np.ndarray, matrix: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return a digit uint8 [H,W] transformed to uint8 [40,40]; see `transformations`.

    The digit's ink, spread by the interpolation, stays inside the image wherever `place` puts it.
    """
    from scipy.ndimage import affine_transform  # late: only this set needs it

    centre = (np.array(digit.shape) - 1) / 2
    ink = (np.argwhere(digit) - centre) @ matrix.T
    reach = np.abs(matrix).sum(axis=1)  # a pixel is seen up to one pixel around it
    lowest = -1 - (ink.min(axis=0) - reach)  # where the first row and column of ink are just inside
    highest = _SIDE - (ink.max(axis=0) + reach)
    shift = lowest + place * (highest - lowest)  # of the digit's centre, in pixels of the image
    inverse = np.linalg.inv(matrix)
    moved = affine_transform(
        digit.astype(np.float64), inverse, centre - inverse @ shift, (_SIDE, _SIDE), order=1, mode="constant"
    )
    return np.rint(moved).astype(np.uint8)


def transformed(digits: Samples, versions: int = _VERSIONS) -> Samples:
    """Return `versions` transformations of every digit, image uint8 (1, 28, 28) to (1, 40, 40).

    Sample v * N + d is version v of digit d. A further field, int64: digit (d).
    """
    arrays = digits.read(0, len(digits))
    images, labels = arrays["image"], arrays["label"]

    def make(ids: np.ndarray) -> dict[str, np.ndarray]:
        digit = ids % len(images)
        made = np.zeros((len(ids), 1, _SIDE, _SIDE), np.uint8)
        for place, drawn in enumerate(zip(images[digit, 0], *transformations(ids), strict=True)):
            made[place, 0] = transform(*drawn)
        return {"image": made, "label": labels[digit], "digit": digit}

    number = FieldType(np.dtype(np.int64))
    fields = {"image": FieldType(np.dtype(np.uint8), (1, _SIDE, _SIDE)), "label": number, "digit": number}
    return GeneratedSamples(len(images) * versions, fields, make)


def _load(source: Path | None, folder: Path, command: str) -> dict[str, Samples]:
    return {"test": transformed(load_mnist(source, folder.with_name("mnist"), command)["test"])}


AFFNIST_LIKE = DatasetSpec(
    name="affnist_like",
    licence="GENERATED from MNIST, not affNIST: CC BY-SA 3.0 (LeCun, Cortes, Burges)",
    title="GENERATED from MNIST like affNIST's test set (320,000 images of 40x40); not affNIST",
    classes=tuple("0123456789"),
    load=_load,
    source="As for mnist; the images are made from its test set.",
    splits=SPLITS["affnist_like"],
)
