"""Read a split: shards read into memory on first use, checked once, gathered by sample id."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from capsdist.data.format.blocks import check_labels, read_block
from capsdist.data.format.fields import check_not_decoded
from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.index import INDEX_NAME, Index, parse_index
from capsdist.data.format.layout import ALIGNMENT
from capsdist.data.format.packed import IMAGE
from capsdist.data.format.reading import FileDamagedError, Identity, read_exactly
from capsdist.data.format.room import Room
from capsdist.data.format.source import Observe

__all__ = ["Split", "read_index", "read_shard"]

_REMEDY = "pack it again (capsdist pack)"
_WRONG_LABEL = "correct the labels and pack the set anew"
_MEMORY_BYTES = 512 << 20
_IDLE_GATHERS = 8  # a shard that so many calls did not use may make room for another


def read_index(folder: str | os.PathLike[str], *, remedy: str = "") -> Index:
    """Read and check the index of the split in `folder`, a path or s3:// URL.

    `remedy` is what the error says where the split is not there, usually the command that packs it.

    Raises:
        DataError: folder or index missing, not JSON, of another format or version, or not what its
            own digest says.
    """
    place, remedy = SplitFolder(folder), remedy or _REMEDY
    return parse_index(place.read_index(remedy), f"{place}/{INDEX_NAME}", remedy)


@dataclass(frozen=True)
class _Known:
    """A shard of which parts were read and had the right checksum.

    verified: which parts, bool; identity: its file, as it was then; fields: arrays [num_samples, ...] of all
    fields but the image, filled where verified.
    """

    verified: np.ndarray
    identity: Identity
    fields: dict[str, np.ndarray]


@dataclass
class _Held:
    """A shard in memory: the row of its first sample in the `Room`, and the number of the call that used it
    last."""

    first: int
    last_used: int


class Split:
    """The samples of one split, by sample id: the place in storage order, 0 .. num_samples - 1.

    `folder`: a local path or an s3:// URL, whose shards go through the cache of the node. Make one a process
    and thread. When a shard is first touched, its file is read into memory and its checksum compared with the
    index, so that damage stops a run instead of entering it. Shards stay in memory up to `memory_bytes`; of
    one that does not, the blocks that are touched are read and their checksums compared. Where that was done
    once, single images are read, and the file's device, inode, size and times are compared before and after;
    where they differ, blocks are read and compared again. So a file that is overwritten, cut, replaced or
    removed meanwhile gives the right images or an error. No file stays open. `size`: height and width that
    the images must have, if given.

    Raises:
        DataError: the index is missing or unreadable; while reading, a shard that is missing, truncated
            or differs from its checksum or its index, or a label that is not one of the classes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        remedy: str = "",
        size: tuple[int, int] | None = None,
        memory_bytes: int = _MEMORY_BYTES,
    ) -> None:
        self.folder = SplitFolder(folder)
        self.is_local = self.folder.is_local
        self.index = read_index(folder, remedy=remedy)
        check_not_decoded(self.index.image_shape, size, str(self.folder))
        self.memory_bytes = memory_bytes
        self._remedy = remedy
        self._known: dict[int, _Known] = {}
        self._held: OrderedDict[int, _Held] = OrderedDict()  # the one used last is the last
        self._held_bytes = 0
        self._room: Room | None = None
        self._gathers = 0

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 [n,C,H,W] and labels, int64 [n] or [n,K], of `ids` [n], in that order."""
        found = self.fields(ids, IMAGE, self.index.label_name)
        return found[IMAGE], found[self.index.label_name]

    def fields(self, ids: np.ndarray, *names: str) -> dict[str, np.ndarray]:
        """Return the fields `names` of `ids` [n], in that order: arrays [n, ...]; see `Index.fields`."""
        known = self.index.field
        out = {name: np.empty((len(ids), *known[name].shape), known[name].numpy) for name in names}
        self.gather_into(ids, out)
        return out

    decodes = False
    """Images are copied as they are stored."""

    def gather_into(self, ids: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Copy the samples `ids` [n] into `out`: contiguous arrays [n, ...] by the names of fields.

        Cost: a copy of every image (about 0.1 us for 784 bytes); a system call an image of a shard that is
        not in memory; where the split is not local, the download of shards that the node does not have.
        """
        which = self._shards_of(ids)
        self.prefetch(ids)
        self._gathers += 1
        first_rows = np.full(len(self.index.shards), -1)
        for number in np.unique(which).tolist():
            if held := self._touch(number):
                first_rows[number] = held.first
                continue
            rows = np.flatnonzero(which == number)
            flat = {
                name: array.reshape(len(ids), -1) if name == IMAGE else array for name, array in out.items()
            }
            self._read_rows(number, flat, rows, ids[rows] - self.index.shard_starts[number])
        places = first_rows[which]
        held_rows = np.flatnonzero(places >= 0)
        if self._room is None or not held_rows.size:
            return
        places += ids - self.index.shard_starts[which]
        if len(held_rows) == len(ids):
            self._room.take(places, out)
            return
        found = {
            name: np.empty((len(held_rows), *array.shape[1:]), array.dtype) for name, array in out.items()
        }
        self._room.take(places[held_rows], found)
        for name, array in found.items():
            out[name][held_rows] = array

    def prefetch(self, ids: np.ndarray) -> None:
        """Begin to fetch the shards of `ids` that are far away; return at once."""
        if not self.is_local:
            numbers = [number for number in np.unique(self._shards_of(ids)) if number not in self._held]
            self.folder.prefetch([self.index.shards[number] for number in numbers])

    def _shards_of(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.index.shard_starts, ids, side="right") - 1

    def _touch(self, number: int) -> _Held | None:
        """Return shard `number` in memory, None if there is no room for it."""
        if held := self._held.get(number):
            self._held.move_to_end(number)
            held.last_used = self._gathers
            return held
        if not self._make_room(size := self._memory(number)):
            return None
        blocks = self._read_whole(number)
        assert self._room, "_make_room has made it"
        self._held[number] = held = _Held(self._room.put(blocks), self._gathers)
        self._held_bytes += size
        return held

    def _memory(self, number: int) -> int:
        """Return the bytes of shard `number` in memory."""
        shard = self.index.shards[number]
        if self.index.compression == "none":
            return shard.size_bytes
        return shard.num_samples * sum(field.num_bytes for field in self.index.fields)

    def _make_room(self, size_bytes: int) -> bool:
        """Drop shards that are not used now; return whether one of `size_bytes` more may be in memory."""
        if size_bytes > self.memory_bytes:
            return False
        if self._room is None:
            most = max(shard.num_samples for shard in self.index.shards)
            fit = self.memory_bytes // (most * sum(field.num_bytes for field in self.index.fields))
            self._room = Room(self.index.fields, most, max(1, min(fit, len(self.index.shards))))
        while self._held and (self._room.is_full or self._held_bytes + size_bytes > self.memory_bytes):
            number, oldest = next(iter(self._held.items()))
            if self._gathers - oldest.last_used <= _IDLE_GATHERS:
                return False
            del self._held[number]
            self._room.release(oldest.first)
            self._held_bytes -= self._memory(number)
        return True

    def check_files(self) -> None:
        """Read a local split wholly and compare it with the index; of others list the files."""
        if not self.is_local:
            self.folder.check_sizes(self.index.shards, self._remedy)
            return
        for number in range(len(self.index.shards)):
            self._read_whole(number)

    def verify_files(self, observe: Observe | None = None) -> None:
        """Compare every stored shard with its sha256, and the headers of its members with the index."""
        from capsdist.data.format.verify import verify_members

        self.check_files()
        for number, shard in enumerate(self.index.shards):
            content, path = self.folder.stored(shard, self._remedy), self.folder.path(shard)
            blocks = read_shard(content, self.index, number, path, self._remedy)
            verify_members(content, self.index, number, path, self._remedy)
            first = int(self.index.shard_starts[number])
            if observe:
                for place, block in enumerate(blocks):
                    observe(first + place * self.index.block_size, block)

    def _read_whole(self, number: int) -> list[dict[str, np.ndarray]]:
        """Read shard `number`, compare it with the index, and return the arrays of its blocks."""
        index, shard = self.index, self.index.shards[number]
        content, identity = self.folder.read(shard, self._remedy)
        blocks = read_shard(content, index, number, self.folder.path(shard), self._remedy)
        names = index.field.keys() - {IMAGE}
        fields = {name: np.concatenate([block[name] for block in blocks]) for name in names}
        self._known[number] = _Known(np.ones(len(blocks), bool), identity, fields)
        return blocks

    def _read_rows(
        self, number: int, flat: Mapping[str, np.ndarray], rows: np.ndarray, local: np.ndarray
    ) -> None:
        """Read the samples `local` of shard `number`, which is not in memory, into `rows` of `flat`."""
        images = flat.get(IMAGE)
        known = self._known.get(number)
        size = self.index.block_size
        block = local // size
        if images is None:
            read = known is not None and bool(known.verified[block].all())
        else:
            read = self._read_images(number, images, rows, local)
        if not read and self.index.version == 1:  # only whole shards have checksums
            every = [part[IMAGE].reshape(-1, self.index.image_bytes) for part in self._read_whole(number)]
            if images is not None:
                images[rows] = np.concatenate(every)[local]
        elif not read:
            for each in np.unique(block).tolist():
                found, chosen = self._read_block(number, each), block == each
                if images is not None:
                    images[rows[chosen]] = found[local[chosen] - each * size]
        for name in flat.keys() - {IMAGE}:
            flat[name][rows] = self._known[number].fields[name][local]

    def _read_images(self, number: int, target: np.ndarray, rows: np.ndarray, local: np.ndarray) -> bool:
        """Read single images of blocks that are verified; False if one is not, or the file has changed."""
        index, known = self.index, self._known.get(number)
        block, place = np.divmod(local, index.block_size)
        if known is None or index.compression != "none" or not known.verified[block].all():
            return False
        image = index.fields.index(index.field[IMAGE])
        starts = np.array([span.starts[image] for span in index.spans(number)]) + ALIGNMENT
        offsets = starts[block] + place * index.image_bytes
        with self.folder.open(index.shards[number], self._remedy) as file:
            if self.folder.identify(file) != known.identity:
                return False
            try:
                for row, offset in zip(rows.tolist(), offsets.tolist(), strict=True):
                    read_exactly(file.fileno(), target[row], offset)
            except (FileDamagedError, OSError):
                return False
            return self.folder.identify(file) == known.identity

    def _read_block(self, number: int, block: int) -> np.ndarray:
        """Read a block of shard `number`, compare it with the index, and return its images [n, bytes]."""
        index, shard = self.index, self.index.shards[number]
        part, path = shard.blocks[block], self.folder.path(shard)
        span = index.spans(number)[block]
        content, identity = self.folder.read(shard, self._remedy, (span.begin, span.end, part.xxh3_128))
        first = block * index.block_size
        arrays = read_block(content, index, span, part.num_samples, path, self._remedy)
        check_labels(
            arrays[index.label_name],
            index,
            int(index.shard_starts[number]) + first,
            _WRONG_LABEL,
            f"{path}: ",
        )
        known = self._known.get(number)
        if known is None or known.identity != identity:
            fields = known.fields if known else _empty_fields(index, number)  # they were right, and stay so
            known = self._known[number] = _Known(np.zeros(len(shard.blocks), bool), identity, fields)
        known.verified[block] = True
        images = arrays.pop(IMAGE)
        for name, array in arrays.items():
            known.fields[name][first : first + len(array)] = array
        return images.reshape(len(images), -1)


def read_shard(
    content: np.ndarray, index: Index, number: int, path: str, remedy: str = ""
) -> list[dict[str, np.ndarray]]:
    """Return the arrays of all blocks of shard `number`, whose file at `path` holds `content`.

    Raises:
        DataError: its arrays do not have the shape that the index says, or a label is not one of the classes.
    """
    found, first = [], int(index.shard_starts[number])
    for block, span in zip(index.shards[number].blocks, index.spans(number), strict=True):
        part = content[span.begin : span.end]
        arrays = read_block(part, index, span, block.num_samples, path, remedy)
        check_labels(arrays[index.label_name], index, first, _WRONG_LABEL, f"{path}: ")
        found.append(arrays)
        first += block.num_samples
    return found


def _empty_fields(index: Index, number: int) -> dict[str, np.ndarray]:
    num = index.shards[number].num_samples
    fields = (field for field in index.fields if field.name != IMAGE)
    return {field.name: np.zeros((num, *field.shape), field.numpy) for field in fields}
