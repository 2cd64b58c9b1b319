"""Encoded images before they are packed: what a writer reads of them, and image files on disk as such."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from capsdist.data.decoding import decode_into, image_size
from capsdist.data.format.fields import Field

__all__ = ["EncodedSample", "EncodedSamples", "checked_sample"]

_DECODED_SIZE = (8, 8, 3)  # to find files that are cut; JPEG shrinks while it is decoded


@dataclass(frozen=True)
class EncodedSample:
    """An image file, what follows the dot in its name, and the other fields: numbers or arrays by name.

    size: height and width of the image in pixels.
    """

    content: bytes
    suffix: str
    size: tuple[int, int]
    values: Mapping[str, int | float | np.ndarray]


def checked_sample(
    content: bytes, suffix: str, values: Mapping[str, int | float | np.ndarray]
) -> EncodedSample:
    """Return a sample of the image file `content`, once it is sure that it can be decoded.

    Raises:
        DataError: as `decode_into`.
    """
    decode_into(content, np.empty(_DECODED_SIZE, np.uint8))
    return EncodedSample(content, suffix, image_size(content), values)


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

    def read(self, start: int, stop: int) -> Iterable[EncodedSample]:
        """Return the samples start .. stop - 1, without those that cannot be read; iterating reads them.

        Raises:
            DataError: an original that is damaged.
        """
        ...
