"""What `Transform` does, written as loops over images and pixels in float64: the reference of its tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def python_splitmix(state: int) -> int:
    """splitmix64's output for a state, in Python's integers (Steele, Lea, Flood 2014)."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def number(sample_id: int, draw: int, seed: int, epoch: int) -> float:
    """The random number of a sample for a purpose, in [0, 1)."""
    key = python_splitmix(python_splitmix(python_splitmix((seed + GOLDEN) & MASK) ^ epoch) ^ draw)
    return (python_splitmix((key + (sample_id + 1) * GOLDEN) & MASK) >> 11) * 2.0**-53


def interpolated(image: np.ndarray, y: float, x: float, *, border: bool) -> np.ndarray:
    """The value [C] of an image [C, H, W] between the centres of pixels; y = 0 is that of the first row."""
    height, width = image.shape[1:]
    if border:
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    value = np.zeros(len(image))
    for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                value += row_weight * column_weight * image[:, row, column]
    return value


def resized(image: np.ndarray, part: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    """The part (top, left, height, width) of an image, resized."""
    top, left, height, width = part
    result = np.zeros((len(image), *size))
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = top + (i + 0.5) * height / size[0] - 0.5, left + (j + 0.5) * width / size[1] - 0.5
            result[:, i, j] = interpolated(image, y, x, border=True)
    return result


def central_part(sides: tuple[int, ...], size: tuple[int, int]) -> tuple[float, ...]:
    """The largest central rectangle with the proportions of `size`."""
    if sides[0] * size[1] > sides[1] * size[0]:  # too high
        height, width = sides[1] * size[0] / size[1], float(sides[1])
    else:
        height, width = float(sides[0]), sides[0] * size[1] / size[0]
    return (sides[0] - height) / 2, (sides[1] - width) / 2, height, width


def mapped(
    image: np.ndarray, angle: float, shear: float, factor: float, down: float, right: float
) -> np.ndarray:
    """An image under the map of its points (x, y, 1), from the centre: shear, scale, turn, move."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    sheared = np.array([[1, math.tan(math.radians(shear)), 0], [0, 1, 0], [0, 0, 1]])
    turned = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    moved = np.array([[1, 0, right], [0, 1, down], [0, 0, 1]])
    back = np.linalg.inv(moved @ turned @ np.diag([factor, factor, 1]) @ sheared)
    height, width = image.shape[1:]
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    result = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            x, y, _ = back @ [j - middle_x, i - middle_y, 1]
            result[:, i, j] = interpolated(image, middle_y + y, middle_x + x, border=False)
    return result


def transformed(
    image: np.ndarray, sample_id: int, seed: int, epoch: int, options: dict[str, Any]
) -> np.ndarray:
    """One image uint8 [C, H, W] as the network sees it in training, float64."""

    def between(draw: int, low: float, high: float) -> float:
        return low + (high - low) * number(sample_id, draw, seed, epoch)

    image = image.astype(np.float64)
    size, crop, shift = options.get("resize"), options.get("crop"), options.get("shift", 0)
    if size and crop:
        image = resized(image, central_part(image.shape[1:], size), size)
        size = None
    height, width = crop or image.shape[1:]
    top, left = (
        int(between(draw, 0, 2 * shift + 1)) + int(between(draw + 2, 0, have - want + 1))
        for draw, have, want in zip((0, 1), image.shape[1:], (height, width), strict=True)
    )
    padded = np.pad(image, [(0, 0), (shift, shift), (shift, shift)])
    image = padded[:, top : top + height, left : left + width]
    if options.get("flip") and number(sample_id, 4, seed, epoch) < 0.5:
        image = image[:, :, ::-1]
    if size:
        part = central_part(image.shape[1:], size)
        if "resize_area" in options or "resize_ratio" in options:
            share = between(9, *options.get("resize_area", (1, 1)))
            low, high = options.get("resize_ratio", (1, 1))
            factor = math.exp(between(10, math.log(low), math.log(high)))
            height = min(part[2] * math.sqrt(share / factor), image.shape[1])
            width = min(part[3] * math.sqrt(share * factor), image.shape[2])
            part = (
                between(7, 0, image.shape[1] - height),
                between(8, 0, image.shape[2] - width),
                height,
                width,
            )
        image = resized(image, part, size)
    if options.keys() & {"rotation", "translation", "scale", "shear"}:
        rotation, shear, far = (options.get(name, 0.0) for name in ("rotation", "shear", "translation"))
        factor = between(14, *options.get("scale", (1.0, 1.0)))
        angle, slope = between(11, -rotation, rotation), between(15, -shear, shear)
        image = mapped(image, angle, slope, factor, between(12, -far, far), between(13, -far, far))
    image = image + between(5, -options.get("brightness", 0), options.get("brightness", 0))
    low, high = options.get("contrast", (1, 1))
    mean = image.mean((1, 2), keepdims=True)
    image = np.clip(((image - mean) * between(6, low, high) + mean) / 255, 0, 1)
    if mean := options.get("normalise_mean"):
        image = np.stack([(c - m) / s for c, m, s in zip(image, mean, options["normalise_std"], strict=True)])
    if side := options.get("cutout"):
        row, column = (
            int(number(sample_id, draw, seed, epoch) * length)
            for draw, length in zip((16, 17), image.shape[1:], strict=True)
        )
        for i in range(row - side // 2, row - side // 2 + side):
            for j in range(column - side // 2, column - side // 2 + side):
                if 0 <= i < image.shape[1] and 0 <= j < image.shape[2]:
                    image[:, i, j] = 0.0
    return image
