"""Transform images on the device: shift, crop, flip, brightness, contrast, conversion to float.

Sources: the paper, section 4 (shift up to 2 pixels with zeros outside); the official code's CIFAR-10
input (random crop, flip, brightness, contrast, per-image standardisation, in this order).

Random numbers are a pure function of (seed, epoch, sample id, draw), so neither batch nor world size matters.
With k = mix(mix(mix(seed + G) ^ epoch) ^ draw), `uniform` is the upper 53 bits of mix(k + (id + 1) * G). Here
mix is the finaliser of splitmix64 and G = 0x9E3779B97F4A7C15, all modulo 2^64. Draws: 0, 1 shift down and
right; 2, 3 crop; 4 flip; 5 brightness; 6 contrast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from capsdist.config.images import sides
from capsdist.errors import ShapeError

__all__ = ["Transform", "uniform"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_SHIFT_Y, _SHIFT_X, _CROP_Y, _CROP_X, _FLIP, _BRIGHTNESS, _CONTRAST = range(7)


def uniform(sample_ids: Tensor, draw: int, seed: int, epoch: int | Tensor) -> Tensor:
    """Return float64 [b] in [0, 1): one number per sample, a pure function of the four arguments.

    sample_ids int64 [b], on any device; epoch: of all samples, or int64 [b]; 53 random bits a number.
    """
    key = _mix_int(seed + _GOLDEN)
    if isinstance(epoch, int):  # without a kernel a GPU would have to start
        start: int | Tensor = _signed(_mix_int(_mix_int(key ^ epoch) ^ draw))
    else:
        start = _mix(_mix(epoch ^ _signed(key)) ^ draw)
    state = _mix((sample_ids + 1) * _signed(_GOLDEN) + start)
    return ((state >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


class Transform:
    """Turn stored images into what the network sees.

    shift in pixels; crop: side, or height and width, in pixels; flip; brightness in grey levels of 255;
    contrast: range of the factor; standardise: zero mean and unit variance an image. With `train=False`
    nothing is random: the central crop, no shift, flip, brightness or contrast.
    """

    def __init__(
        self,
        *,
        shift: int = 0,
        crop: int | tuple[int, int] = 0,
        flip: bool = False,
        brightness: float = 0.0,
        contrast: tuple[float, float] = (1.0, 1.0),
        standardise: bool = False,
        train: bool = True,
    ) -> None:
        self.shift, self.crop, self.flip = shift, sides(crop) if crop else None, flip
        self.brightness, self.contrast = brightness, contrast
        self.standardise, self.train = standardise, train

    def __call__(self, images: Tensor, sample_ids: Tensor, seed: int, epoch: int | Tensor) -> Tensor:
        """Return float32 [b,C,H',W'] of images uint8 [b,C,H,W], on their device.

        epoch: of all images, or int64 [b].
        Values are in [0, 1], or standardised. H', W' are those of the crop, or H, W without one.

        Raises:
            ShapeError: images that are not uint8 [b,C,H,W] or smaller than the crop.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ShapeError(f"images are {images.dtype} {list(images.shape)}; give uint8 [b,C,H,W]")
        if self.crop and (images.shape[2] < self.crop[0] or images.shape[3] < self.crop[1]):
            crop = " x ".join(map(str, dict.fromkeys(self.crop)))
            raise ShapeError(
                f"images are {list(images.shape)}, smaller than the crop {crop}; lower data.crop"
            )
        if not self.train:
            return self.evaluated(images)
        grey = self._window(images, sample_ids, seed, epoch).float()
        return self._scaled(self._colours(grey, sample_ids, seed, epoch))

    def evaluated(self, images: Tensor) -> Tensor:
        """Return what the network sees of `images` in evaluation: grey levels 0 to 255, any dtype."""
        return self._scaled(self._central(images).float())

    def _scaled(self, grey: Tensor) -> Tensor:
        return _standardised(grey) if self.standardise else (grey / 255).clamp_(0, 1)

    def _central(self, images: Tensor) -> Tensor:
        if not self.crop:
            return images
        height, width = self.crop
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        return images[:, :, top : top + height, left : left + width]

    def _window(self, images: Tensor, sample_ids: Tensor, seed: int, epoch: int | Tensor) -> Tensor:
        """Shift, crop and flip at once: a window of the zero-padded image, its columns perhaps reversed."""
        if not (self.shift or self.crop or self.flip):
            return images

        def draw(number: int, choices: int) -> Tensor:
            return (uniform(sample_ids, number, seed, epoch) * choices).long()

        height, width = self.crop or images.shape[2:]
        top = draw(_SHIFT_Y, 2 * self.shift + 1) + draw(_CROP_Y, images.shape[2] - height + 1)
        left = draw(_SHIFT_X, 2 * self.shift + 1) + draw(_CROP_X, images.shape[3] - width + 1)
        padded = F.pad(images, [self.shift] * 4)
        rows = top[:, None] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(len(images), width)
        if self.flip:
            mirrored = uniform(sample_ids, _FLIP, seed, epoch) < 0.5
            columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
        columns = left[:, None] + columns
        places = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).flatten(1)
        channels = images.shape[1]
        taken = padded.flatten(2).gather(2, places[:, None].expand(-1, channels, -1))
        return taken.view(len(images), channels, height, width)

    def _colours(self, grey: Tensor, sample_ids: Tensor, seed: int, epoch: int | Tensor) -> Tensor:
        def draw(number: int, low: float, high: float) -> Tensor:
            value = low + (high - low) * uniform(sample_ids, number, seed, epoch)
            return value.float()[:, None, None, None]

        if self.brightness:
            grey = grey + draw(_BRIGHTNESS, -self.brightness, self.brightness)
        if self.contrast != (1.0, 1.0):
            mean = grey.mean((2, 3), keepdim=True)  # a channel, as tf.image.adjust_contrast
            grey = (grey - mean) * draw(_CONTRAST, *self.contrast) + mean
        return grey


def _standardised(grey: Tensor) -> Tensor:
    """Per-image standardisation as tf.image.per_image_standardization, in grey levels."""
    floor = grey[0].numel() ** -0.5
    std, mean = torch.std_mean(grey, (1, 2, 3), correction=0, keepdim=True)
    return (grey - mean) / std.clamp_min(floor)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _mix_int(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix(value: Tensor) -> Tensor:
    """Return splitmix64's finaliser of int64 `value`; >> is arithmetic, so the sign bits are masked off."""

    def shifted(amount: int) -> Tensor:
        return (value >> amount) & ((1 << (64 - amount)) - 1)

    value = (value ^ shifted(30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ shifted(27)) * _signed(0x94D049BB133111EB)
    return value ^ shifted(31)
