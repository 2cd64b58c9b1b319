"""Height and width of images, as one number of pixels or as two. Imports nothing."""

from __future__ import annotations

__all__ = ["sides", "size_option", "size_text"]


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a size."""
    return size if isinstance(size, tuple) else (size, size)


def size_option(size: int | tuple[int, int]) -> str:
    """Return a size as an option of a command takes it."""
    return " ".join(map(str, size)) if isinstance(size, tuple) else str(size)


def size_text(size: int | tuple[int, int]) -> str:
    """Return a size for people."""
    return " x ".join(map(str, size)) if isinstance(size, tuple) else str(size)
