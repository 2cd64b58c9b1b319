"""Printed characters in the place of images, for runs that only show that everything works together."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

__all__ = ["idx_bytes", "printed"]


def idx_bytes(array: np.ndarray) -> bytes:
    """Return the content of an idx file of `array`, uint8."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def printed(texts: Sequence[str], side: int = 28) -> np.ndarray:
    """Return an image of each of `texts`, white on black: uint8 [N, side, side].

    Of different sizes, in different places, the same for an equal number of texts.
    """
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(len(texts))
    images = np.empty((len(texts), side, side), np.uint8)
    for image, text in zip(images, texts, strict=True):
        drawn = Image.new("L", (side, side))
        font = ImageFont.load_default(size=rng.uniform(16, 24) * side / 28)
        across, down = rng.uniform(11, 17, 2) * side / 28
        ImageDraw.Draw(drawn).text((across, down), text, fill=255, font=font, anchor="mm")
        image[:] = np.asarray(drawn)
    return images
