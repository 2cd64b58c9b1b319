"""Write a split of encoded images: tar files that stock webdataset reads, their tables, and the index."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from capsdist.data.encoded.files import EncodedSample, EncodedSamples
from capsdist.data.encoded.index import (
    EncodedIndex,
    EncodedShard,
    StoredTable,
    check_other_fields,
    common_size,
)
from capsdist.data.encoded.table import packed_table, table_dtype
from capsdist.data.encoded.tars import samples_in_tar
from capsdist.data.format.blocks import check_labels
from capsdist.data.format.classes import check_class_names
from capsdist.data.format.fields import Field
from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.packed import LABEL
from capsdist.data.format.parts import Parts
from capsdist.errors import DataError

__all__ = ["ShardJob", "stored_table", "table_of", "write_encoded", "write_shard"]

_SHARD_BYTES = 64 << 20
_SHARD_SIZE = 8192
_WRONG_LABEL = "correct the label or name all classes"


@dataclass(frozen=True)
class _Packed:
    """A shard in memory: what the index says of it, its tar file and its table."""

    shard: EncodedShard
    tar: bytes
    table: bytes


@dataclass(frozen=True)
class ShardJob:
    """A shard that is to be written: `number`, its `samples`, and the number of the first in the split.

    index: of the split, without shards; made_of, resume: see `Parts`. Can be pickled if `samples` can.
    """

    number: int
    first: int
    samples: Iterable[EncodedSample]
    index: EncodedIndex
    made_of: tuple[str, *tuple[object, ...]]
    resume: bool


Run = Callable[[SplitFolder, Iterator[ShardJob]], Iterable[EncodedShard | None]]
"""Returns what `write_shard` returns for each job, in their order."""


def write_shard(place: SplitFolder, job: ShardJob) -> EncodedShard | None:
    """Write a shard unless it is stored already; return what the index says of it, None without samples.

    Raises:
        DataError: a label out of range, or a folder that cannot be written.
    """
    parts = Parts(place, EncodedShard, job.made_of, resume=job.resume)
    shard = parts.finished(job.number)
    if shard is not None and place.holds(shard.table):
        return shard
    if (packed := _packed(job)) is None:
        return None
    for file, content in ((packed.shard, packed.tar), (packed.shard.table, packed.table)):
        if not (job.resume and place.holds(file)):
            place.put(file, content)
    parts.finish(job.number, packed.shard)
    return packed.shard


def _one_after_the_other(place: SplitFolder, jobs: Iterator[ShardJob]) -> Iterator[EncodedShard | None]:
    return (write_shard(place, job) for job in jobs)


def write_encoded(
    folder: str | os.PathLike[str],
    samples: EncodedSamples,
    *,
    classes: Sequence[str],
    num_channels: int = 3,
    licence: str = "",
    resume: bool = True,
    shard_bytes: int = _SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
    run: Run | None = None,
) -> EncodedIndex:
    """Write `samples` as the split in `folder`, a path or s3:// URL, and return its index.

    Image files are stored as they are. The memory that it takes is a few times that of a shard: up to 8,192
    samples with image files of up to `shard_bytes`, or one larger one. Otherwise as `write_samples`: equal
    input gives equal bytes, the index is published last, packing that was cut off goes on after the shards
    that samples of the same fingerprint have filled, and `progress` is called as progress(done, total). `run`
    may have other processes write the shards, with `write_shard`; the bytes are the same.

    Raises:
        DataError: no samples, fields that cannot be stored, a label out of range, names of classes that are
            empty or not unique, a number of channels that is not 1 or 3, or a folder that cannot be written.
    """
    check_class_names(classes)
    check_other_fields(samples.fields)
    if num_channels not in (1, 3):
        raise DataError(f"num_channels={num_channels}; give 1 for grey or 3 for red, green and blue")
    index = EncodedIndex(num_channels, None, samples.fields, tuple(classes), (), licence=licence)
    place, total = SplitFolder(folder), len(samples.sizes)
    with place.packing():
        made_of = (samples.fingerprint, index.with_digest().digest, total, shard_bytes)
        ranges = list(_ranges(samples.sizes, shard_bytes))
        jobs = (
            ShardJob(number, start, samples.read(start, stop), index, made_of, resume)
            for number, (start, stop) in enumerate(ranges)
        )
        shards: list[EncodedShard] = []
        for shard, (_, stop) in zip((run or _one_after_the_other)(place, jobs), ranges, strict=True):
            shards += [shard] if shard else []
            if progress:
                progress(stop, total)
        if not shards:
            raise DataError(f"{place}: there are no samples to write; give at least one")
        index = replace(index, shards=tuple(shards), stored_size=common_size(tuple(shards))).with_digest()
        place.publish([*shards, *(shard.table for shard in shards)], index.to_json())
    return index


def table_of(
    places: Sequence[tuple[int, int, int]], values: Sequence[Mapping[str, Any]], fields: Sequence[Field]
) -> np.ndarray:
    """Return a table: `places` of the images as `Found.place` has them, `values` of the other `fields`."""
    table = np.zeros(len(places), table_dtype(fields))
    for row, (place, own) in enumerate(zip(places, values, strict=True)):
        table[row] = (*place, *(own[field.name] for field in fields))
    return table


def stored_table(number: int, content: bytes) -> StoredTable:
    """Return what an index says of table `number`, whose file holds `content`."""
    return StoredTable(f"table-{number:05d}.npy", len(content), hashlib.sha256(content).hexdigest())


def _ranges(sizes: np.ndarray, shard_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the samples, start and stop, of every shard."""
    start, held = 0, 0
    for number, size in enumerate(sizes.tolist()):
        if number > start and (held + size > shard_bytes or number - start >= _SHARD_SIZE):
            yield start, number
            start, held = number, 0
        held += size
    if len(sizes):
        yield start, len(sizes)


def _packed(job: ShardJob) -> _Packed | None:
    """Return the shard of `job`; None: none of its samples can be read."""
    from webdataset.writer import TarWriter  # late: only writing needs it

    index, number = job.index, job.number
    stream, values, sizes = io.BytesIO(), [], set()
    # An integer mtime keeps every header plain USTAR: webdataset's own float would force a PAX record.
    with TarWriter(stream, encoder=False, mtime=0, user="", group="") as writer:
        for offset, sample in enumerate(job.samples):
            fields = {field.name: np.asarray(sample.values[field.name]) for field in index.other_fields}
            members = {sample.suffix: sample.content, **_label_members(fields)}
            writer.write({"__key__": f"{number:05d}{offset:06d}", **members})
            values.append(dict(fields))
            sizes.add(sample.size)
    if not values:
        return None
    content = stream.getvalue()
    path = f"shard-{number:05d}.tar"
    places = [found.place for found in samples_in_tar(io.BytesIO(content), path, _refuse)]
    table = table_of(places, values, index.other_fields)
    check_labels(table[index.label_name], index, job.first, _WRONG_LABEL)
    stored = packed_table(table)
    shard = EncodedShard(
        name=path,
        size_bytes=len(content),
        num_samples=len(table),
        sha256=hashlib.sha256(content).hexdigest(),
        size=sizes.pop() if len(sizes) == 1 else None,
        table=stored_table(number, stored),
    )
    return _Packed(shard, content, stored)


def _label_members(fields: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Return the members that label an image for other readers: `cls` with one label, `json` with more."""
    if fields.keys() == {LABEL}:
        return {"cls": str(int(fields[LABEL])).encode()}
    return {"json": json.dumps({name: value.tolist() for name, value in fields.items()}).encode()}


def _refuse(text: str) -> None:
    raise DataError(f"{text}; give another suffix to its image")
