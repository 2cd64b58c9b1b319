"""Turn stored images into what the network sees, on the device; README.md gives the order and the sources."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from capsdist.data.transforms.colours import coloured, cut_out, normalised, standardised
from capsdist.data.transforms.geometry import affine, central, largest_part, random_part, resized, window
from capsdist.data.transforms.random_numbers import Draws
from capsdist.errors import ShapeError
from capsdist.sizes import sides, size_text

if TYPE_CHECKING:
    from capsdist.config import Data

__all__ = ["Transform"]

_SAME = (1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Turn stored images into what the network sees; by default, pixels in [0, 1].

    Options mean what the fields of `capsdist.config.Data` of the same name mean. crop and resize are a side,
    or height and width, in pixels; with both, images are resized first. With `train=False` nothing is random:
    the largest central part resized, the central crop, then standardised or normalised.

    Example:
        >>> ids = torch.arange(4)
        >>> Transform(shift=2)(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), ids, seed=0, epoch=0).shape
        torch.Size([4, 1, 28, 28])
    """

    shift: int = 0
    crop: int | tuple[int, int] = 0
    flip: bool = False
    resize: int | tuple[int, int] = 0
    resize_area: tuple[float, float] = _SAME
    resize_ratio: tuple[float, float] = _SAME
    rotation: float = 0.0
    translation: float = 0.0
    scale: tuple[float, float] = _SAME
    shear: float = 0.0
    brightness: float = 0.0
    contrast: tuple[float, float] = _SAME
    standardise: bool = False
    normalise_mean: tuple[float, ...] = ()
    normalise_std: tuple[float, ...] = ()
    cutout: int = 0
    train: bool = True

    @classmethod
    def of(cls, data: Data, *, train: bool) -> Self:
        """Return the transform that a configuration asks for, in training or in evaluation."""
        options = {field.name: getattr(data, field.name) for field in fields(cls) if field.name != "train"}
        return cls(**options, train=train)

    def __call__(self, images: Tensor, sample_ids: Tensor, seed: int, epoch: int | Tensor) -> Tensor:
        """Return float32 [b,C,H',W'] of images uint8 [b,C,H,W], on their device.

        sample_ids: int64 [b]; epoch: of all images, or int64 [b]. An image's result depends on (seed, epoch,
        sample id) only. H', W' are those of the crop, else of `resize`, or H, W without either.
        Values are in [0, 1], or standardised, or normalised.

        Raises:
            ShapeError: images that are not uint8 [b,C,H,W], are smaller than the crop, or have other channels
                than numbers to normalise them with.
        """
        self._check(images)
        if not self.train:
            return self.evaluated(images)
        images = images.contiguous()  # decoded images have the channels of a pixel side by side
        draws = Draws(sample_ids, seed, epoch)
        if self.crop:
            images = self._resized(images, draws)
        size = sides(self.crop) if self.crop else (images.shape[2], images.shape[3])
        grey = window(images, draws, shift=self.shift, size=size, flip=self.flip).float()
        if not self.crop:
            grey = self._resized(grey, draws)
        if self.rotation or self.translation or self.shear or self.scale != _SAME:
            grey = affine(
                grey,
                draws,
                rotation=self.rotation,
                translation=self.translation,
                scale=self.scale,
                shear=self.shear,
            )
        grey = coloured(grey, draws, brightness=self.brightness, contrast=self.contrast)
        pixels = self._scaled(grey)
        return cut_out(pixels, draws, self.cutout) if self.cutout else pixels

    def evaluated(self, images: Tensor) -> Tensor:
        """Return what the network sees of `images` in evaluation: grey levels 0 to 255, any dtype."""
        images = self._resized(images.contiguous())
        return self._scaled((central(images, sides(self.crop)) if self.crop else images).float())

    def _resized(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        """Return the largest central part of `images` resized, with `draws` a random one if asked for."""
        if not self.resize:
            return images
        size, own = sides(self.resize), (images.shape[2], images.shape[3])
        if draws is None or self.resize_area == self.resize_ratio == _SAME:
            part = largest_part(own, size)
        else:
            part = random_part(draws, own, size, self.resize_area, self.resize_ratio)
        return resized(images.float(), part, size)

    def _scaled(self, grey: Tensor) -> Tensor:
        if self.standardise:
            return standardised(grey)
        pixels = (grey / 255).clamp_(0, 1)
        if self.normalise_mean:
            return normalised(pixels, self.normalise_mean, self.normalise_std)
        return pixels

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ShapeError(f"images are {images.dtype} {list(images.shape)}; give uint8 [b,C,H,W]")
        shape, (height, width) = list(images.shape), sides(self.crop)
        if not self.resize and (height > shape[2] or width > shape[3]):
            crop = size_text(self.crop)
            raise ShapeError(f"images are {shape}, smaller than the crop {crop}; lower data.crop")
        if self.normalise_mean and len(self.normalise_mean) != shape[1]:
            num = len(self.normalise_mean)
            raise ShapeError(f"images are {shape}, normalised by {num} means; give one a channel")
