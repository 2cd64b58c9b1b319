"""Shapes of images that follow from a configuration. Imports neither torch nor ray."""

from __future__ import annotations

from capsdist.config.images import sides
from capsdist.config.models import NetworkConfig
from capsdist.config.schema import Config

__all__ = ["image_shape", "stored_shape"]


def image_shape(model: NetworkConfig) -> tuple[int, int, int]:
    """Return (C, H, W) of an image as the network sees it."""
    return (model.in_channels, *sides(model.image_size))


def stored_shape(config: Config) -> tuple[int, int | None, int | None]:
    """Return (C, H, W) that stored images must have; a side is None where cropping or resizing decides it."""
    channels, height, width = image_shape(config.model)
    fitted = config.data.crop or config.data.resize
    return (channels, None, None) if fitted else (channels, height, width)
