"""Image files of a `Tree` as encoded samples with one label each, in an order that mixes the classes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from capsdist.data.encoded.files import EncodedSample, checked_sample
from capsdist.data.format.fields import Field
from capsdist.data.format.order import permutation
from capsdist.data.format.packed import LABEL
from capsdist.data.sets.trees import Places, Tree
from capsdist.errors import DataError

__all__ = ["Members", "members_of"]

_AT_ONCE = 64  # files in memory
# How files of the formats begin that other readers know, and what follows the dot in the name of a member.
_SUFFIXES = {
    b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"BM": "bmp", b"GIF8": "gif",
    b"II*\0": "tif", b"MM\0*": "tif", b"P5": "pgm", b"P6": "ppm",
}  # fmt: skip


@dataclass(frozen=True)
class Members:
    """Image files as `EncodedSamples`: their places, labels (int64 [n]) and the classes' names by label.

    stamp: changes when the files do, empty if that is not known; threads: that read and decode, 0: as many as
    the machine has cores. A file that is no image raises `DataError` when it is read.
    """

    places: Places
    labels: np.ndarray
    classes: tuple[str, ...]
    stamp: str
    threads: int = 0
    fields = (Field(LABEL, "<i8"),)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """Digest of names, sizes and times of the files, their places and labels."""
        if not self.stamp:
            return ""
        digest = hashlib.sha256(repr(("members", self.stamp, self.classes)).encode())
        for column in (self.places.container, self.places.offset, self.places.size, self.labels):
            digest.update(np.ascontiguousarray(column, "<i8").tobytes())
        return digest.hexdigest()

    @property
    def sizes(self) -> np.ndarray:
        """Size in bytes of every file: int64 [n]."""
        return self.places.size

    def take(self, ids: np.ndarray) -> Members:
        """Return the members `ids`."""
        return replace(self, places=self.places.take(ids), labels=self.labels[ids])

    def read(self, start: int, stop: int) -> Members:
        """Return the members start .. stop - 1; iterating them reads the files. Can be pickled."""
        return self.take(np.arange(start, stop))

    def __iter__(self) -> Iterator[EncodedSample]:
        """Read the files one after the other, in threads, and check that each can be decoded.

        Raises:
            DataError: a file that cannot be read or is no image.
        """
        with self.places.opened() as content, ThreadPoolExecutor(self.threads or os.cpu_count()) as pool:

            def read(row: int) -> EncodedSample:
                try:
                    return _sample(content(row), int(self.labels[row]))
                except DataError as error:
                    where = self.places.where(row)
                    text = str(error)
                    raise DataError(text if text.startswith(where) else f"{where}: {text}") from None

            for first in range(0, len(self), _AT_ONCE):
                yield from pool.map(read, range(first, min(first + _AT_ONCE, len(self))))


def members_of(
    tree: Tree, rows: Sequence[int], labels: Sequence[int], classes: Sequence[str], split: str
) -> Members:
    """Return the files `rows` of `tree` with `labels`, mixed: training reads neighbours together.

    The order follows from the names of the files, so folders and archives make equal sets.

    Raises:
        DataError: there are none.
    """
    if not len(rows):
        raise DataError(
            f"{tree.source}: has no images of the split {split}; give the original folder or archive"
        )
    by_name = np.array(sorted(range(len(rows)), key=lambda place: tree.names[rows[place]]), np.int64)
    order = by_name[permutation(len(rows), "order", 0, split)]
    places = tree.places.take(np.asarray(rows, np.int64)[order])
    return Members(places, np.asarray(labels, np.int64)[order], tuple(classes), tree.stamp)


def _sample(content: bytes, label: int) -> EncodedSample:
    """Return a sample; a name may say another format than the file has, as in ImageNet."""
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if content.startswith(start)), None)
    if suffix is None:
        raise DataError("is no image of a format that other readers know; convert it to JPEG or PNG")
    try:
        return checked_sample(content, suffix, {LABEL: label})
    except DataError as error:
        raise DataError(f"is no image ({error}); get the original again") from None
