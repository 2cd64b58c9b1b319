"""Read a split: shards read into memory on first use, checked once, gathered by sample id."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from capsdist.data.format.folder import open_folder
from capsdist.data.format.index import INDEX_NAME, KEPT, Index, Shard, parse_index
from capsdist.data.format.layout import ALIGNMENT, is_npy_header
from capsdist.data.format.reading import FileDamagedError, Identity, read_exactly
from capsdist.errors import DataError

__all__ = ["Split", "check_content", "read_index"]

_REMEDY = "pack it again (capsdist pack)"
_MEMORY_BYTES = 512 << 20
_IDLE_GATHERS = 8  # a shard that so many calls did not use may make room for another


def read_index(folder: str | os.PathLike[str], *, remedy: str = "") -> Index:
    """Read and check the index of the split in `folder`, a path or s3:// URL.

    `remedy` is what the error says where the split is not there, usually the command that packs it.

    Raises:
        DataError: folder or index missing, not JSON, of another format or version, or not what its
            own digest says.
    """
    place, remedy = open_folder(folder), remedy or _REMEDY
    return parse_index(place.read_index(remedy), f"{place}/{INDEX_NAME}", remedy)


@dataclass(frozen=True)
class _Known:
    """A shard whose checksum was right: labels, offsets of its blocks, and its file as it was then."""

    labels: np.ndarray
    offsets: np.ndarray
    identity: Identity


@dataclass
class _Held:
    """A shard in memory: every place of its file as the start of an image, and the call that used it last."""

    images: np.ndarray
    last_used: int


class Split:
    """The samples of one split, by sample id: the place in storage order, 0 .. num_samples - 1.

    `folder`: a local path or an s3:// URL, whose shards go through the cache of the node. Make one a process
    and thread. When a shard is first touched, its file is read into memory and its checksum compared with the
    index, so that damage stops a run instead of entering it. Shards stay in memory up to `memory_bytes`; of
    one that does not, images are read one by one, and its file's device, inode, size and times are
    compared before and after. Where they differ, the whole shard is read and its checksum compared again.
    So a file that is overwritten, cut, replaced or removed meanwhile gives the right images or an error. No
    file stays open.

    Raises:
        DataError: the index is missing or unreadable; while reading, a shard that is missing, truncated
            or differs from its checksum or its index, or a label that is not one of the classes.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, remedy: str = "", memory_bytes: int = _MEMORY_BYTES
    ) -> None:
        self.folder = open_folder(folder)
        self.index = read_index(folder, remedy=remedy)
        self.memory_bytes = memory_bytes
        self._remedy = remedy
        self._known: dict[int, _Known] = {}
        self._held: OrderedDict[int, _Held] = OrderedDict()  # the one used last is the last
        self._held_bytes = 0
        self._gathers = 0

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 [n,C,H,W] and labels int64 [n] of `ids` [n], in that order."""
        images = np.empty((len(ids), *self.index.image_shape), np.uint8)
        labels = np.empty(len(ids), np.int64)
        self.gather_into(ids, images, labels)
        return images, labels

    def gather_into(self, ids: np.ndarray, images: np.ndarray, labels: np.ndarray) -> None:
        """Copy the samples `ids` [n] into contiguous `images` uint8 [n,C,H,W] and `labels` int64 [n].

        Cost: two copies of every image (about 0.4 us for 784 bytes) and about 30 us a shard touched; a system
        call an image of a shard that is not in memory; where the split is not local, the download of shards
        that the node does not have.
        """
        flat = images.reshape(len(ids), -1)
        which = self._shards_of(ids)
        self.prefetch(ids)
        self._gathers += 1
        for number in np.unique(which).tolist():
            rows = np.flatnonzero(which == number)
            local = ids[rows] - self.index.shard_starts[number]
            known, held = self._touch(number)
            block, place = np.divmod(local, self.index.block_size)
            offsets = known.offsets[block] + place * self.index.image_bytes
            if held is not None:
                flat[rows] = held[offsets]
            elif not self._read_images(number, known, flat, rows, offsets):
                flat[rows] = self._read(number)[offsets]  # the file has changed: right again, or an error
            labels[rows] = known.labels[local]

    def prefetch(self, ids: np.ndarray) -> None:
        """Begin to fetch the shards of `ids` that are far away; return at once."""
        if not self.folder.is_near:
            numbers = [number for number in np.unique(self._shards_of(ids)) if number not in self._held]
            self.folder.prefetch([self.index.shards[number] for number in numbers])

    def labels(self, number: int) -> np.ndarray:
        """Return all labels of shard `number`, int64."""
        return self._touch(number)[0].labels

    def _shards_of(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.index.shard_starts, ids, side="right") - 1

    def _touch(self, number: int) -> tuple[_Known, np.ndarray | None]:
        """Return what is known of shard `number` and its images in memory, None if they are not there."""
        if held := self._held.get(number):
            self._held.move_to_end(number)
            held.last_used = self._gathers
            return self._known[number], held.images
        has_room = self._make_room(self.index.shards[number].size_bytes)
        if number not in self._known or has_room:
            images = self._read(number)
            if has_room:
                self._held[number] = _Held(images, self._gathers)
                self._held_bytes += self.index.shards[number].size_bytes
                return self._known[number], images
        return self._known[number], None

    def _read(self, number: int) -> np.ndarray:
        """Read shard `number` whole, compare it with the index, and return its images."""
        index, shard = self.index, self.index.shards[number]
        content, identity = self.folder.read(shard, self._remedy)
        labels = check_content(content, index, number, f"{self.folder}/{shard.name}", self._remedy)
        offsets = np.array([block.images_offset_bytes for block in shard.blocks])
        self._known[number] = _Known(labels, offsets, identity)
        # Every place of the file as the start of an image: a view, so one indexing call copies whole images.
        return np.lib.stride_tricks.sliding_window_view(content, index.image_bytes)

    def _read_images(
        self, number: int, known: _Known, flat: np.ndarray, rows: np.ndarray, offsets: np.ndarray
    ) -> bool:
        """Read images at `offsets` of shard `number` into `rows` of `flat`; False if its file has changed."""
        with self.folder.open(self.index.shards[number], self._remedy) as file:
            if self.folder.identify(file) != known.identity:
                return False
            try:
                for row, offset in zip(rows.tolist(), offsets.tolist(), strict=True):
                    read_exactly(file.fileno(), flat[row], offset)
            except (FileDamagedError, OSError):
                return False
            return self.folder.identify(file) == known.identity

    def _make_room(self, size_bytes: int) -> bool:
        """Drop shards that are not used now; return whether `size_bytes` more may be in memory."""
        while self._held and self._held_bytes + size_bytes > self.memory_bytes:
            number, oldest = next(iter(self._held.items()))
            if self._gathers - oldest.last_used <= _IDLE_GATHERS:
                break
            del self._held[number]
            self._held_bytes -= self.index.shards[number].size_bytes
        return self._held_bytes + size_bytes <= self.memory_bytes


def check_content(content: np.ndarray, index: Index, number: int, path: str, remedy: str = "") -> np.ndarray:
    """Return the labels int64 of shard `number`, whose file at `path` holds `content`, once they are right.

    Raises:
        DataError: its arrays do not have the shape that the index says, or a label is not one of the classes.
    """
    shard = index.shards[number]
    labels = np.empty(shard.num_samples, np.int64)
    for block, part in zip(shard.blocks, np.split(labels, _starts(shard)), strict=True):
        num = block.num_samples
        for offset, dtype, shape in (
            (block.images_offset_bytes, np.dtype(np.uint8), (num, *index.image_shape)),
            (block.labels_offset_bytes, np.dtype("<i8"), (num,)),
        ):
            if not is_npy_header(content[offset - ALIGNMENT : offset].tobytes(), dtype, shape):
                raise DataError(
                    f"{path}: holds no {dtype} array of shape {list(shape)} at byte {offset}, as its index "
                    f"says; {remedy or KEPT}"
                )
        part[:] = np.frombuffer(content, "<i8", num, block.labels_offset_bytes)
    wrong = np.flatnonzero((labels < 0) | (labels >= index.num_classes))
    if wrong.size:
        raise DataError(
            f"{path}: label {labels[wrong[0]]} of sample {index.shard_starts[number] + wrong[0]} is outside "
            f"0..{index.num_classes - 1}; correct the labels and pack the set anew"
        )
    return labels


def _starts(shard: Shard) -> np.ndarray:
    """Return the first sample of every block of `shard` but the first."""
    return np.cumsum([block.num_samples for block in shard.blocks])[:-1]
