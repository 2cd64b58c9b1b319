"""Make tar files of the webdataset format a readable split, without changing them: tables and an index."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from capsdist.data.decoding import image_size
from capsdist.data.encoded.index import EncodedIndex, EncodedShard, common_size
from capsdist.data.encoded.table import packed_table
from capsdist.data.encoded.tars import label_of, samples_in_tar
from capsdist.data.encoded.write import stored_table, table_of
from capsdist.data.format.classes import check_class_names
from capsdist.data.format.fields import Field
from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.packed import ENCODED, INDEX_NAME, LABEL, MAX_INDEX_BYTES, format_of
from capsdist.errors import DataError, DocumentError
from capsdist.storage import is_remote, open_folder

__all__ = ["TarTable", "index_tars", "open_tar", "tables_of"]

_FIELDS = (Field(LABEL, "<i8"),)
_MAX_REMOTE_BYTES = 4 << 30  # of a tar file in S3, which is read into memory


@dataclass
class TarTable:
    """A tar file that was read: name, size, checksum, common size of its images, and its table."""

    name: str
    size_bytes: int
    sha256: str
    size: tuple[int, int] | None
    table: np.ndarray


@dataclass
class _Labels:
    """The labels that were found, numbers or names, in the order of their first use."""

    numbers: dict[str | int, int] = field(default_factory=dict)

    def number(self, label: str | int) -> int:
        """Return the place of `label`."""
        return self.numbers.setdefault(label, len(self.numbers))


def index_tars(
    source: str,
    to: str = "",
    *,
    classes: Sequence[str] = (),
    label_key: str = "label",
    num_channels: int = 3,
    licence: str = "",
    warn: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
) -> EncodedIndex:
    """Write tables and an index of the tar files in `source` to `to`, and return the index.

    source: a local folder or s3:// URL with tar files of `key.jpg` (or another image format) and `key.cls`,
    `key.json` or `key.txt`; they are read once and not changed. to: folder or URL of the split; "" puts the
    files beside the tar files. classes: names by label; without them, labels that are names are numbered in
    their order, and labels that are numbers are their own names. label_key: the key of the label in `json`.
    Samples without an image or label that can be read are passed over, and `warn` is told.

    The index holds the place of the tar files if `to` is another folder. Memory: one tar file where they are
    in S3, at most 4 GiB, and about 30 bytes a sample.

    Raises:
        DataError: there are no tar files or samples, one is damaged, a label is none of `classes`, numbers
            and names are mixed, `to` holds a split of another kind or cannot be written.
    """
    place = SplitFolder(to or source)
    _check_place(to or source)
    found, read = tables_of(
        source, open_tar, classes=classes, label_key=label_key, warn=warn, progress=progress
    )
    shards, contents = [], []
    for number, tar in enumerate(read):
        contents.append(packed_table(tar.table))
        table = stored_table(number, contents[-1])
        shards.append(EncodedShard(tar.name, tar.size_bytes, len(tar.table), tar.sha256, tar.size, table))
    beside = not to or _absolute(to) == _absolute(source)
    index = EncodedIndex(
        num_channels,
        common_size(tuple(shards)),
        _FIELDS,
        found,
        tuple(shards),
        licence=licence,
        location="" if beside else _absolute(source),
    ).with_digest()
    with place.packing():
        for shard, content in zip(shards, contents, strict=True):
            if not place.holds(shard.table):
                place.put(shard.table, content)
        place.publish([shard.table for shard in shards], index.to_json(), own_shards=False)
    return index


def tables_of(
    source: str,
    opened: Callable[[str, str, int], AbstractContextManager[IO[bytes]]],
    *,
    classes: Sequence[str],
    label_key: str,
    warn: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[tuple[str, ...], list[TarTable]]:
    """Return the names of the classes and the table of every tar file in `source` that has samples.

    opened: opens a tar file, as `open_tar`; the others: see `index_tars`.

    Raises:
        DataError: as `index_tars`.
    """
    tars = SplitFolder(source)
    tars.check_access("give a folder with tar files")
    if not (names := tars.tar_names()):
        raise DataError(f"{tars}: has no tar files; give the folder that they lie in")
    labels, read = _Labels(), []
    for done, (name, size_bytes) in enumerate(names.items(), 1):
        with opened(source, name, size_bytes) as file:
            if tar := _read_tar(file, source, name, labels, label_key, warn):
                read.append(tar)
        if progress:
            progress(done, len(names))
    if not read:
        raise DataError(f"{tars}: its {len(names)} tar files hold no image with a label; see --help")
    found, numbers = _numbered(list(labels.numbers), classes, str(tars))
    for tar in read:
        tar.table[LABEL] = numbers[tar.table[LABEL]]
    return found, read


def open_tar(source: str, name: str, size_bytes: int) -> AbstractContextManager[IO[bytes]]:
    """Open the tar file `name` in `source`; one in S3 is read into memory.

    Raises:
        DataError: one in S3 has more than 4 GiB or cannot be read.
    """
    tars = SplitFolder(source)
    if tars.is_local:
        return tars.open_tar(name)
    if size_bytes > _MAX_REMOTE_BYTES:
        raise DataError(f"{source}/{name}: has {size_bytes:,} bytes, at most {_MAX_REMOTE_BYTES:,} are read")
    return nullcontext(io.BytesIO(tars.read_tar(name, _MAX_REMOTE_BYTES)))


def _check_place(place: str) -> None:
    """Check that no split of another format would be overwritten."""
    folder = open_folder(place)
    try:
        content = folder.read(INDEX_NAME, max_bytes=MAX_INDEX_BYTES)
        known = content is None or format_of(content) == ENCODED
    except DocumentError:
        known = False
    if not known:
        path = folder.path(INDEX_NAME)
        raise DataError(f"{path}: is the index of another kind of split; name another folder with --to")


def _read_tar(
    file: IO[bytes],
    source: str,
    name: str,
    labels: _Labels,
    label_key: str,
    warn: Callable[[str], None],
) -> TarTable | None:
    """Return the table of a tar file, with the place of each label in `labels`; None without samples."""
    places: list[tuple[int, int, int]] = []
    values: list[dict[str, int]] = []
    sizes: set[tuple[int, int]] = set()
    where = open_folder(source).path(name)
    try:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror}); get the file again") from None
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    for sample in samples_in_tar(file, where, warn):
        try:
            size, label = image_size(sample.image), labels.number(label_of(sample, label_key))
        except DataError as error:
            warn(f"{where}: sample {sample.key!r} is passed over: {error}")
            continue
        sizes.add(size)
        values.append({LABEL: label})
        places.append(sample.place)
    if not places:
        warn(f"{where}: holds no image with a label, and is left out")
        return None
    table = table_of(places, values, _FIELDS)
    return TarTable(name, size_bytes, sha256, sizes.pop() if len(sizes) == 1 else None, table)


def _numbered(
    labels: Sequence[str | int], classes: Sequence[str], where: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return names of the classes and, for the place of each of `labels`, its number: int64 [labels]."""
    names = {label for label in labels if isinstance(label, str)}
    if names and len(names) < len(labels):
        raise DataError(f"{where}: labels are numbers and names, {min(names)!r} for example; use one kind")
    most = max((label for label in labels if isinstance(label, int)), default=-1)
    if not classes and most >= 1 << 20:
        raise DataError(
            f"{where}: has the label {most}; labels are 0, 1, ... up to the number of classes - 1"
        )
    found = tuple(classes) or tuple(sorted(names)) or tuple(map(str, range(most + 1)))
    check_class_names(found)
    number = {name: place for place, name in enumerate(found)}
    numbers = [label if isinstance(label, int) else number.get(label, -1) for label in labels]
    for label, place in zip(labels, numbers, strict=True):
        if not 0 <= place < len(found):
            raise DataError(f"{where}: label {label!r} is none of the {len(found)} classes; name all of them")
    return found, np.array(numbers, np.int64)


def _absolute(source: str) -> str:
    return source.rstrip("/") if is_remote(source) else str(Path(source.removeprefix("file://")).resolve())
