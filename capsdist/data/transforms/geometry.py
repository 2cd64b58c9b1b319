"""Where pixels go: shift, crop and flip by whole pixels; resized parts and affine maps by interpolation.

Interpolation is bilinear, without antialiasing: an image that is made much smaller shows aliases, so pack
images near the size that the network sees. Pixel j of a row covers the coordinates from j to j + 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from capsdist.data.transforms.random_numbers import Draw, Draws

__all__ = [
    "Part", "affine", "central", "largest_part", "moved", "random_part", "resized", "shifted", "window",
]  # fmt: skip

Sides = tuple[int, int]
"""Height and width in pixels."""


class Part(NamedTuple):
    """A rectangle of each image: upper left corner and sides in pixels, float64 [b], or a number for all."""

    top: Tensor | float
    left: Tensor | float
    height: Tensor | float
    width: Tensor | float


def central(images: Tensor, size: Sides) -> Tensor:
    """Return the central crop [b, C, *size] of images [b, C, H, W], a view."""
    height, width = size
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width]


def window(images: Tensor, draws: Draws, *, shift: int, size: Sides, flip: bool) -> Tensor:
    """Shift, crop and flip at once: a window of the zero-padded image, its columns perhaps reversed.

    images: any dtype [b, C, H, W]. Each is shifted by up to `shift` pixels each way, zeros outside (paper,
    section 4), cropped to `size` at a random place, and if `flip` half of them are mirrored left to right.
    """
    height, width = size
    if not (shift or flip) and size == tuple(images.shape[2:]):
        return images
    top = draws.below(Draw.SHIFT_Y, 2 * shift + 1) + draws.below(Draw.CROP_Y, images.shape[2] - height + 1)
    left = draws.below(Draw.SHIFT_X, 2 * shift + 1) + draws.below(Draw.CROP_X, images.shape[3] - width + 1)
    padded = F.pad(images, [shift] * 4)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(len(images), width)
    if flip:
        mirrored = draws.uniform(Draw.FLIP) < 0.5
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    return _taken(padded, rows, left[:, None] + columns)


def shifted(images: Tensor, shifts: Tensor, limit: int) -> Tensor:
    """Return images [b, C, H, W], each moved by whole pixels of its own; zeros come in.

    shifts: int64 [b, 2], pixels to the right and down, from -limit to limit.
    """
    height, width = images.shape[2:]
    right, down = limit - shifts.T[:, :, None]
    rows = down + torch.arange(height, device=images.device)
    columns = right + torch.arange(width, device=images.device)
    return _taken(F.pad(images, [limit] * 4), rows, columns)


def _taken(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return of images [b, C, H, W] the pixels [b, C, h, w] in `rows` [b, h] and `columns` [b, w]."""
    (num, channels, _, across), size = images.shape, (rows.shape[1], columns.shape[1])
    places = (rows[:, :, None] * across + columns[:, None, :]).flatten(1)
    taken = images.flatten(2).gather(2, places[:, None].expand(-1, channels, -1))
    return taken.view(num, channels, *size)


def moved(images: Tensor, down: int, right: int) -> Tensor:
    """Return images [b, C, H, W] moved by whole pixels, negative ones up and left; zeros come in."""
    return F.pad(images, [right, -right, down, -down])


def largest_part(sides: Sides, size: Sides) -> Part:
    """Return the largest central rectangle of the proportions of `size` in an image of `sides`."""
    factor = min(sides[0] / size[0], sides[1] / size[1])
    height, width = factor * size[0], factor * size[1]
    return Part((sides[0] - height) / 2, (sides[1] - width) / 2, height, width)


def random_part(
    draws: Draws, sides: Sides, size: Sides, area: tuple[float, float], ratio: tuple[float, float]
) -> Part:
    """Return a random rectangle of each image, after Szegedy et al. 2015, section 6.

    Its area is a share of that of `largest_part`, evenly drawn from the range `area`; its width over its
    height is that of `size` times a factor from the range `ratio`, evenly drawn in the logarithm. A side that
    would be longer than the image's is cut to it. Its place is evenly drawn from all places inside the image.
    """
    whole = largest_part(sides, size)
    share = draws.between(Draw.PART_AREA, *area)
    factor = draws.between(Draw.PART_RATIO, math.log(ratio[0]), math.log(ratio[1])).exp()
    height = (whole.height * (share / factor).sqrt()).clamp(max=sides[0])
    width = (whole.width * (share * factor).sqrt()).clamp(max=sides[1])
    top = draws.uniform(Draw.PART_Y) * (sides[0] - height)
    left = draws.uniform(Draw.PART_X) * (sides[1] - width)
    return Part(top, left, height, width)


def resized(images: Tensor, part: Part, size: Sides) -> Tensor:
    """Return the `part` of images [b, C, H, W], floating, resized to [b, C, *size].

    Beyond the centres of the outermost pixels their values go on.
    """
    rows = _places(part.top, part.height, size[0], images.shape[2], images.device)
    columns = _places(part.left, part.width, size[1], images.shape[3], images.device)
    return _sampled(images, rows[:, :, None], columns[:, None, :], size, outside="border")


def affine(
    images: Tensor,
    draws: Draws,
    *,
    rotation: float,
    translation: float,
    scale: tuple[float, float],
    shear: float,
) -> Tensor:
    """Return images [b, C, H, W], floating, each under an affine map of its own about its centre.

    A point (x, y) right of and below the centre is sheared to (x + y tan(s), y), scaled by a factor, turned
    clockwise by an angle, and moved right and down: s is up to `shear` degrees, the angle up to `rotation`
    degrees and the movement up to `translation` pixels, either way; the factor is from the range `scale`; all
    evenly drawn. Zeros come in from outside.
    """
    angle = draws.between(Draw.ROTATION, -rotation, rotation).deg2rad()
    slope = draws.between(Draw.SHEAR, -shear, shear).deg2rad().tan()
    factor = draws.between(Draw.SCALE, *scale)
    down = draws.between(Draw.TRANSLATION_Y, -translation, translation)
    right = draws.between(Draw.TRANSLATION_X, -translation, translation)
    cos, sin = angle.cos() / factor, angle.sin() / factor
    # The inverse map, from places in the result to places in the image, in halves of its sides. Sums of
    # products, not a product of matrices: a GPU may multiply matrices in TF32.
    height, width = images.shape[2:]
    y = _centred(height, images.device)[None, :, None] - down[:, None, None]
    x = _centred(width, images.device)[None, None, :] - right[:, None, None]
    cos, sin, slope = cos[:, None, None], sin[:, None, None], slope[:, None, None]
    rows = (cos * y - sin * x) * (2 / height)
    columns = ((cos + slope * sin) * x + (sin - slope * cos) * y) * (2 / width)
    return _sampled(images, rows, columns, (height, width), outside="zeros")


def _centred(length: int, device: torch.device) -> Tensor:
    """Return the centres of `length` pixels, seen from the middle of them, float64."""
    return torch.arange(length, device=device).double() - (length - 1) / 2


def _places(
    start: Tensor | float, length: Tensor | float, num: int, side: int, device: torch.device
) -> Tensor:
    """Return `num` places [b or 1, num] along a part of a side, as `_sampled` takes them."""
    centres = torch.arange(num, device=device).double()[None] + 0.5
    start, length = (each[:, None] if isinstance(each, Tensor) else each for each in (start, length))
    return (start + centres * (length / num)) * (2 / side) - 1


def _sampled(images: Tensor, rows: Tensor, columns: Tensor, size: Sides, *, outside: str) -> Tensor:
    """Interpolate at `rows` and `columns`, which broadcast to [b, *size]: -1 and 1 are the image's edges."""
    shape = (images.shape[0], *size)  # not len(): torch.export would take it for a constant
    grid = torch.stack([columns.expand(shape), rows.expand(shape)], -1).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)
