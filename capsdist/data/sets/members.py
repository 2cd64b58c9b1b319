"""Image files of a `Tree` as encoded samples with one label each, in an order that mixes the classes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from capsdist.data.decoding import decode_into
from capsdist.data.encoded.files import EncodedSample, checked_sample
from capsdist.data.format.fields import Field
from capsdist.data.format.order import permutation
from capsdist.data.format.packed import IMAGE, LABEL
from capsdist.data.format.samples import FieldType
from capsdist.data.sets.trees import Places, Tree
from capsdist.errors import DataError

__all__ = ["DecodedMembers", "Members", "members_of"]

_T = TypeVar("_T")
_AT_ONCE = 64  # files in memory
# How files of the formats begin that other readers know, and what follows the dot in the name of a member.
_SUFFIXES = {
    b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"BM": "bmp", b"GIF8": "gif",
    b"II*\0": "tif", b"MM\0*": "tif", b"P5": "pgm", b"P6": "ppm",
}  # fmt: skip


@dataclass(frozen=True)
class Members:
    """Image files as `EncodedSamples`: their places, labels (int64 [n]) and the classes' names by label.

    stamp: changes when the files do; threads: that read and decode, 0: as many as the machine has cores;
    left_out: is told of a file that is no image, which then is left out; None: `DataError` is raised.
    """

    places: Places
    labels: np.ndarray
    classes: tuple[str, ...]
    stamp: str
    threads: int = 0
    left_out: Callable[[str], None] | None = None
    fields = (Field(LABEL, "<i8"),)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """Digest of names, sizes and times of the files, their places and labels."""
        strict = self.left_out is None
        digest = hashlib.sha256(repr(("members", self.stamp, self.classes, strict)).encode())
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

    def mixed(self, seed: int, split: str) -> Members:
        """Return all members in an order of `seed` and `split`: training reads neighbours together."""
        return self.take(permutation(len(self), "order", seed, split))

    def read(self, start: int, stop: int) -> Members:
        """Return the members start .. stop - 1; iterating them reads the files. Can be pickled."""
        return self.take(np.arange(start, stop))

    def __iter__(self) -> Iterator[EncodedSample]:
        """Read the files one after the other, in threads, and check that each can be decoded.

        Raises:
            DataError: a file that cannot be read or is no image.
        """
        for _, sample in self.each(lambda row, content: _sample(content, int(self.labels[row]))):
            yield sample

    def each(self, use: Callable[[int, bytes], _T]) -> Iterator[tuple[int, _T]]:
        """Yield the number of each file and what `use` returns for it and its content, called in threads.

        Raises:
            DataError: a file that cannot be read, or, without `left_out`, what `use` raises.
        """
        with self.places.opened() as content, ThreadPoolExecutor(self.threads or os.cpu_count()) as pool:

            def read(row: int) -> _T | DataError:
                held = content(row)
                try:
                    return use(row, held)
                except DataError as error:
                    where = self.places.where(row)
                    return DataError(f"{where}: is no image ({error}); get the original again")

            for first in range(0, len(self), _AT_ONCE):
                rows = range(first, min(first + _AT_ONCE, len(self)))
                for row, found in zip(rows, pool.map(read, rows), strict=True):
                    if not isinstance(found, DataError):
                        yield row, found
                    elif self.left_out is None:
                        raise found
                    else:
                        self.left_out(str(found))


class DecodedMembers:
    """Members as `Samples`: decoded to `size` (height and width) and `channels` when they are read."""

    def __init__(self, members: Members, size: tuple[int, int], channels: int) -> None:
        self._members = members
        self.fields: Mapping[str, FieldType] = {
            IMAGE: FieldType(np.dtype(np.uint8), (channels, *size)),
            LABEL: FieldType(np.dtype(np.int64)),
        }

    def __len__(self) -> int:
        return len(self._members)

    @property
    def fingerprint(self) -> str:
        """Digest of what the members are, and of the size that they are decoded to."""
        return hashlib.sha256(repr((self._members.fingerprint, self.fields)).encode()).hexdigest()

    def read(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Return the members start .. stop - 1 that are images: see `Samples`."""
        channels, height, width = self.fields[IMAGE].shape
        members = self._members.read(start, stop)
        pixels = np.empty((len(members), height, width, channels), np.uint8)
        rows = [row for row, _ in members.each(lambda row, content: decode_into(content, pixels[row]))]
        kept = pixels if len(rows) == len(members) else pixels[rows]
        return {IMAGE: np.ascontiguousarray(kept.transpose(0, 3, 1, 2)), LABEL: members.labels[rows]}


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
    places = tree.places.take(np.asarray(rows, np.int64)[by_name])
    members = Members(places, np.asarray(labels, np.int64)[by_name], tuple(classes), tree.stamp)
    return members.mixed(0, split)


def _sample(content: bytes, label: int) -> EncodedSample:
    """Return a sample; a name may say another format than the file has, as in ImageNet."""
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if content.startswith(start)), None)
    if suffix is None:
        raise DataError("of a format that other readers do not know; convert it to JPEG or PNG")
    return checked_sample(content, suffix, {LABEL: label})
