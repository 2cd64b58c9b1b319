"""Encoded images before they are packed: what a writer reads of them, and image files on disk as such."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from capsdist.data.format.fields import Field

__all__ = ["EncodedSample", "EncodedSamples"]


@dataclass(frozen=True)
class EncodedSample:
    """An image file, what follows the dot in its name, and the other fields: numbers or arrays by name.

    size: height and width of the image in pixels.
    """

    content: bytes
    suffix: str
    size: tuple[int, int]
    values: Mapping[str, int | float | np.ndarray]


class EncodedSamples(Protocol):
    """One split of encoded images before it is packed, read in storage order, a part at a time."""

    @property
    def fingerprint(self) -> str:
        """What changes when the samples do; empty if that is unknown."""
        ...

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a sample without its image, in the order of their names."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """Size in bytes of every image file: int64 [n]. Shards are filled by it."""
        ...

    def read(self, start: int, stop: int) -> Iterator[EncodedSample]:
        """Yield the samples start .. stop - 1, without those that cannot be read.

        Raises:
            DataError: an original that is damaged.
        """
        ...
