"""What pixels become: brightness, contrast, standardisation, normalisation, cutout."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from capsdist.data.transforms.random_numbers import Draw, Draws

__all__ = ["coloured", "cut_out", "normalised", "standardised"]


def coloured(grey: Tensor, draws: Draws, *, brightness: float, contrast: tuple[float, float]) -> Tensor:
    """Return images [b, C, H, W] in grey levels of 255, not clamped: another brightness, then contrast.

    Up to `brightness` levels are added, either way; the distance of each channel from its mean is multiplied
    by a factor from the range `contrast`, as in tf.image.adjust_contrast.
    """

    def drawn(draw: Draw, low: float, high: float) -> Tensor:
        return draws.between(draw, low, high).float()[:, None, None, None]

    if brightness:
        grey = grey + drawn(Draw.BRIGHTNESS, -brightness, brightness)
    if contrast != (1.0, 1.0):
        mean = grey.mean((2, 3), keepdim=True)
        grey = (grey - mean) * drawn(Draw.CONTRAST, *contrast) + mean
    return grey


def standardised(grey: Tensor) -> Tensor:
    """Per-image standardisation as tf.image.per_image_standardization, in grey levels."""
    floor = grey[0].numel() ** -0.5
    std, mean = torch.std_mean(grey, (1, 2, 3), correction=0, keepdim=True)
    return (grey - mean) / std.clamp_min(floor)


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return pixels [b, C, H, W] less the mean, over the deviation of their channel; C numbers each."""
    return (pixels - _channels(mean, pixels.device)) / _channels(std, pixels.device)


def cut_out(pixels: Tensor, draws: Draws, size: int) -> Tensor:
    """Return pixels [b, C, H, W] with zeros in one square of each image, `size` pixels a side.

    DeVries and Taylor 2017: its centre is any pixel alike, and what lies outside the image is cut off.
    """
    height, width = pixels.shape[2:]
    rows = _covered(draws.below(Draw.CUTOUT_Y, height), size, height)
    columns = _covered(draws.below(Draw.CUTOUT_X, width), size, width)
    return pixels.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _covered(centres: Tensor, size: int, length: int) -> Tensor:
    """Return which of `length` pixels `size` ones about `centres` [b] cover, bool [b, length]."""
    first = (centres - size // 2)[:, None]
    places = torch.arange(length, device=centres.device)
    return (places >= first) & (places < first + size)


@functools.cache  # for good: a CUDA graph may hold its address
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a number per channel, [C, 1, 1]; kept, because a copy to a GPU makes the host wait."""
    return torch.tensor(values, device=device)[:, None, None]
