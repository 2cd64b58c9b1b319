"""Sizes of images: one number of pixels, or a height and a width. Imports neither torch nor ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ValidationError, WrapValidator

if TYPE_CHECKING:
    from pydantic import ValidatorFunctionWrapHandler

    from capsdist.config.models import NetworkConfig
    from capsdist.config.schema import Config

__all__ = ["Size", "image_shape", "sides", "size_option", "size_text", "stored_shape"]


def _read_size(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        size = handler(tuple(value) if isinstance(value, list) else value)  # JSON and YAML have lists
    except ValidationError:  # one message in place of one for each form
        raise ValueError("give one integer, or two: height and width") from None
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


Size = Annotated[int | tuple[int, int], WrapValidator(_read_size)]
"""A height and a width in pixels, or one number for both. Two equal numbers are read as one."""


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a `Size`."""
    return size if isinstance(size, tuple) else (size, size)


def size_option(size: int | tuple[int, int]) -> str:
    """Return a `Size` as an option of a command takes it."""
    return " ".join(map(str, size)) if isinstance(size, tuple) else str(size)


def size_text(size: int | tuple[int, int]) -> str:
    """Return a `Size` for people."""
    return " x ".join(map(str, size)) if isinstance(size, tuple) else str(size)


def image_shape(model: NetworkConfig) -> tuple[int, int, int]:
    """Return (C, H, W) of an image as the network sees it."""
    return (model.in_channels, *sides(model.image_size))


def stored_shape(config: Config) -> tuple[int, int | None, int | None]:
    """Return (C, H, W) that stored images must have; a side is None where cropping or resizing decides it."""
    channels, height, width = image_shape(config.model)
    fitted = config.data.crop or config.data.resize
    return (channels, None, None) if fitted else (channels, height, width)
