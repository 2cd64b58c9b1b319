"""Read a split of encoded images: bytes by table, checksums compared, decoded in threads."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cached_property, partial
from math import prod
from typing import NamedTuple

import numpy as np
import xxhash

from capsdist.data.decoding import decode_into
from capsdist.data.encoded.index import EncodedIndex, parse_encoded_index
from capsdist.data.encoded.table import read_table
from capsdist.data.encoded.tars import MAX_IMAGE_BYTES, samples_in_tar
from capsdist.data.format.blocks import check_labels
from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.packed import IMAGE, INDEX_NAME
from capsdist.data.format.source import Observe
from capsdist.errors import DataError

__all__ = ["EncodedSplit"]

_REMEDY = "pack or index it again (capsdist pack, capsdist index)"
_PARTS_A_THREAD = 4  # so that threads end together although images differ
_CHECKED_BYTES = 1 << 30  # of a local split, whose images are all compared before a run
_VERIFIED_AT_ONCE = 256  # images, fewer if they are large
_VERIFIED_BYTES = 64 << 20  # of them
_VERIFIED_SIZE = (32, 32)  # pixels that images of different sizes are decoded to


class _Part(NamedTuple):
    """Samples of one shard for one thread: number of the shard, rows of the batch, places in the shard."""

    number: int
    rows: np.ndarray
    local: np.ndarray


class _Fault(NamedTuple):
    """A sample that could not be read: its row, the number of its shard, and why."""

    row: int
    number: int
    reason: str


class EncodedSplit:
    """The samples of a split of encoded images, by sample id; a `Source`.

    folder: a local path or s3:// URL, whose tar files go through the cache of the node. size: height and
    width that images are decoded to, scaled until they cover it and cut alike on both sides; None: the stored
    size, where all images have one. num_threads: that decode; None: one for each processor. The result does
    not depend on it.

    Every image's xxh3_64 is compared with its table when it is read. No file stays open.

    Raises:
        DataError: the index is missing or unreadable; while reading, a file that is missing or differs from
            its index or table, or an image that cannot be decoded.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        remedy: str = "",
        size: tuple[int, int] | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.folder = SplitFolder(folder)
        self._remedy = remedy or _REMEDY
        found = parse_encoded_index(
            self.folder.read_index(self._remedy), f"{self.folder}/{INDEX_NAME}", self._remedy
        )
        self.index: EncodedIndex = replace(found, decode_size=size)
        self.tars = SplitFolder(found.location) if found.location else self.folder
        self.is_local = self.tars.is_local
        self._num_threads = num_threads or len(os.sched_getaffinity(0))
        self._tables: dict[int, np.ndarray] = {}

    decodes = True
    """Images are decoded, in threads."""

    def gather_into(self, ids: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Copy the samples `ids` [n] into `out`: arrays [n, ...] by the names of fields.

        The image array may be contiguous or channels-last; the latter spares a copy of color images.
        """
        which = np.searchsorted(self.index.shard_starts, ids, side="right") - 1
        self.prefetch(ids)
        parts = []
        for number in np.unique(which).tolist():
            rows = np.flatnonzero(which == number)
            local = ids[rows] - self.index.shard_starts[number]
            table = self._table(number)
            for name in out.keys() - {IMAGE}:
                out[name][rows] = table[name][local]
            parts.append(_Part(number, rows, local))
        if IMAGE in out:
            self._decode_all(parts, out[IMAGE])

    def prefetch(self, ids: np.ndarray) -> None:
        """Begin to fetch the tar files of `ids` that are far away; return at once."""
        if not self.is_local:
            which = np.searchsorted(self.index.shard_starts, ids, side="right") - 1
            self.tars.prefetch([self.index.shards[number] for number in np.unique(which)])

    def check_files(self) -> None:
        """Compare presence and sizes of tar files, and the tables; all images of a local split below 1 GiB.

        Raises:
            DataError: naming the first file that differs.
        """
        if not self.is_local:
            self.tars.check_sizes(self.index.shards, self._remedy)
        whole = self.is_local and sum(shard.size_bytes for shard in self.index.shards) <= _CHECKED_BYTES
        for number, shard in enumerate(self.index.shards):
            table = self._table(number)
            if not self.is_local:
                continue
            with self._opened([number]) as files:
                places = np.arange(shard.num_samples if whole else 0)
                for place, (_, reason) in enumerate(_contents(files[number], table, places)):
                    if reason:
                        raise self._error(number, place, reason)

    def verify_files(self, observe: Observe | None = None) -> None:
        """Compare every file with its checksum, and tables with headers of tar files; decode every image.

        observe: called with all fields of up to 256 samples at a time; images of different sizes are
        decoded to 32 x 32 where no size is given.

        Raises:
            DataError: naming the first file or sample that differs.
        """
        self.check_files()
        for number, shard in enumerate(self.index.shards):
            path, table = self.tars.path(shard), self._table(number)
            with self.tars.open(shard, self._remedy) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
                if found != shard.sha256:
                    raise DataError(f"{path}: wrong checksum, the file is damaged; {self._remedy}")
                file.seek(0)
                starts = {found.offset for found in samples_in_tar(file, path, lambda _: None)}
            for place, offset in enumerate(table["offset"].tolist()):
                if offset not in starts:
                    raise DataError(
                        f"{path}: has no image at byte {offset}, where its table has sample {place}; "
                        f"{self._remedy}"
                    )
        size = self.index.decode_size or self.index.stored_size or _VERIFIED_SIZE
        sample_bytes = self.index.num_channels * prod(size)
        if observe:
            sample_bytes += sum(each.num_bytes for each in self.index.other_fields)
        num = max(1, min(_VERIFIED_AT_ONCE, _VERIFIED_BYTES // sample_bytes))
        images = np.empty((num, self.index.num_channels, *size), np.uint8)
        for first in range(0, self.index.num_samples, num):
            ids = np.arange(first, min(first + num, self.index.num_samples))
            found = {IMAGE: images[: len(ids)]}
            if observe:
                fields = self.index.other_fields
                found |= {each.name: np.empty((len(ids), *each.shape), each.numpy) for each in fields}
            self.gather_into(ids, found)
            if observe:
                observe(first, found)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._num_threads, "capsdist-decode")

    def _table(self, number: int) -> np.ndarray:
        """Return the table of shard `number`, which stays in memory."""
        if number not in self._tables:
            index, shard = self.index, self.index.shards[number]
            content = self.folder.stored(shard.table, self._remedy).tobytes()
            path = self.folder.path(shard.table)
            try:
                table = read_table(content, index.other_fields, shard.num_samples, shard.size_bytes)
            except DataError as error:
                raise DataError(f"{path}: {error}; {self._remedy}") from None
            first = int(index.shard_starts[number])
            check_labels(table[index.label_name], index, first, self._remedy, f"{path}: ")
            self._tables[number] = table
        return self._tables[number]

    @contextlib.contextmanager
    def _opened(self, numbers: list[int]) -> Iterator[dict[int, int]]:
        """Yield descriptors of the tar files `numbers`, once they have their sizes."""
        with contextlib.ExitStack() as stack:
            files = {}
            for number in numbers:
                shard = self.index.shards[number]
                files[number] = stack.enter_context(self.tars.open(shard, self._remedy)).fileno()
                if (size := os.fstat(files[number]).st_size) != shard.size_bytes:
                    text = f"has {size} bytes instead of {shard.size_bytes}"
                    raise DataError(f"{self.tars.path(shard)}: {text}; {self._remedy}")
            yield files

    def _decode_all(self, parts: list[_Part], images: np.ndarray) -> None:
        """Decode `parts` into `images` [n, C, H, W]; a damaged copy in the cache is fetched again once."""
        faults = self._faults(parts, images)
        if faults and not self.is_local:
            numbers = {fault.number for fault in faults}
            for number in numbers:
                self.tars.discard_copy(self.index.shards[number])
            faults = self._faults([part for part in parts if part.number in numbers], images)
        if faults:
            first = min(faults)
            part = next(part for part in parts if first.row in part.rows)
            place = int(part.local[np.searchsorted(part.rows, first.row)])
            raise self._error(first.number, place, first.reason)

    def _faults(self, parts: list[_Part], images: np.ndarray) -> list[_Fault]:
        """Decode `parts` in threads; return the samples that cannot be read."""
        total = sum(len(part.rows) for part in parts)
        most = max(1, -(-total // (self._num_threads * _PARTS_A_THREAD)))
        pieces = [
            _Part(number, rows[start : start + most], local[start : start + most])
            for number, rows, local in parts
            for start in range(0, len(rows), most)
        ]
        with self._opened([part.number for part in parts]) as files:
            work = partial(self._decode_part, files, images.transpose(0, 2, 3, 1))
            if self._num_threads == 1 or len(pieces) == 1:
                found = [work(piece) for piece in pieces]
            else:
                futures = [self._pool.submit(work, piece) for piece in pieces]
                wait(futures)  # before the files are closed, also if one raises
                found = [future.result() for future in futures]
        return [fault for faults in found for fault in faults]

    def _decode_part(self, files: Mapping[int, int], images: np.ndarray, part: _Part) -> list[_Fault]:
        """Decode the samples of `part` into their rows of `images` [n, H, W, C]."""
        table, faults = self._tables[part.number], []
        direct = images[part.rows[0]].flags.c_contiguous
        buffer = np.empty(images.shape[1:], np.uint8)
        same = self.index.shards[part.number].size == images.shape[1:3]
        contents = _contents(files[part.number], table, part.local)
        for row, (content, reason) in zip(part.rows.tolist(), contents, strict=True):
            if not reason:
                target = images[row] if direct else buffer
                try:
                    decode_into(content, target, of_this_size=same)
                except DataError as error:
                    reason = f"is no image that can be read ({error})"
                if not direct:
                    images[row] = buffer
            if reason:
                faults.append(_Fault(row, part.number, reason))
        return faults

    def _error(self, number: int, place: int, reason: str) -> DataError:
        path, offset = self.tars.path(self.index.shards[number]), self._tables[number]["offset"][place]
        return DataError(f"{path}: image {place} at byte {offset} {reason}; {self._remedy}")


def _contents(descriptor: int, table: np.ndarray, places: np.ndarray) -> Iterator[tuple[bytes, str]]:
    """Yield the image files that the rows `places` of `table` name, and why one cannot be used, empty if it
    can."""
    # Columns as lists: a single row of a table costs as much as reading a small image.
    columns = (table[name][places].tolist() for name in ("offset", "size", "xxh3_64"))
    for offset, size, checksum in zip(*columns, strict=True):
        if size > MAX_IMAGE_BYTES:
            yield b"", f"has {size:,} bytes, at most {MAX_IMAGE_BYTES:,} are read"
            continue
        try:
            content = os.pread(descriptor, size, offset)
        except OSError as error:
            yield b"", f"cannot be read ({error.strerror})"
            continue
        if xxhash.xxh3_64_intdigest(content) != checksum:
            yield b"", "has another checksum than its table says, the file is damaged"
        else:
            yield content, ""
