"""Sizes of images: one number of pixels, or a height and a width. Imports neither torch nor ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ValidationError, WrapValidator

from capsdist.sizes import sides, size_option, size_text

if TYPE_CHECKING:
    from pydantic import ValidatorFunctionWrapHandler

__all__ = ["Size", "sides", "size_option", "size_text"]


def _read_size(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        size = handler(tuple(value) if isinstance(value, list) else value)  # JSON and YAML have lists
    except ValidationError:  # one message in place of one for each form
        raise ValueError("give one integer, or two: height and width") from None
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


Size = Annotated[int | tuple[int, int], WrapValidator(_read_size)]
"""A height and a width in pixels, or one number for both. Two equal numbers are read as one."""
