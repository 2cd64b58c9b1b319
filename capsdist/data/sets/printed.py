"""Printed digits in MNIST's place, for runs that only show that everything works together."""

from __future__ import annotations

import struct

import numpy as np

from capsdist.data.sets.idx import image_label_pair, parse_idx

__all__ = ["printed_digits"]


def printed_digits(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `num` printed digits, all classes in turn: images uint8 [num, 1, 28, 28], labels int64 [num].

    Of different sizes, in different places, the same for equal `num`. They go through idx files, the format
    of MNIST's originals, and their parser.
    """
    labels = (np.arange(num) % 10).astype(np.uint8)
    name = "a made-up idx file"
    images, numbers = (parse_idx(_idx_bytes(array), name) for array in (_drawn(labels), labels))
    return image_label_pair(images, numbers, name)


def _idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def _drawn(labels: np.ndarray) -> np.ndarray:
    """Return images uint8 [N, 28, 28] of the digits `labels`."""
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(len(labels))
    images = np.empty((len(labels), 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        drawn = Image.new("L", (28, 28))
        font = ImageFont.load_default(size=rng.uniform(16, 24))
        across, down = rng.uniform(11, 17, 2)
        ImageDraw.Draw(drawn).text((across, down), str(label), fill=255, font=font, anchor="mm")
        image[:] = np.asarray(drawn)
    return images
