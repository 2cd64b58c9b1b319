"""The index of a split: what its shards hold, byte for byte, and the digest that names the data set.

`index.json` is a UTF-8 JSON object with the keys

- format, version: "capsdist-blocks", 2; version 1 is read as well, others are refused;
- fields: list of name, dtype (as in .npy files) and shape of one sample, in the order of names: `image`, one
  of `label` and `labels`, and others (see `fields`);
- compression: "none" or "zstd"; classes: names, by label; licence: of the images, a note for people;
- block_size, num_samples: see `layout`;
- shards: list of name, size_bytes, num_samples, xxh3_128 and sha256 (hex, of the file), and blocks: list of
  num_samples, xxh3_128 (of the block) and, if it is compressed, stored_bytes (sizes of its members);
- digest: sha256 (hex) of all other keys as ASCII JSON with sorted keys and separators "," and ":".

Version 1 has image_dtype "|u1", image_shape [C, H, W] and label_dtype "<i8" in the place of fields,
compression and licence, and blocks with num_samples, images_offset_bytes and labels_offset_bytes.

The index is withdrawn before shards are written and published after them, by a rename: a folder without one
was never finished. A file is read by what it must say: types and ranges, names `shard-NNNNN.tar`, no
duplicate keys, and sizes that fit each other: a forged one leads to no other bytes or files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from pydantic import Field as Limits

from capsdist.data.format.classes import check_class_names
from capsdist.data.format.described import OfFields, OfShards
from capsdist.data.format.fields import Field, StoredField, check_fields
from capsdist.data.format.layout import ALIGNMENT, Block, Span, block_sizes, file_size, spans
from capsdist.data.format.packed import (
    FORMAT,
    IMAGE,
    INDEX_NAME,
    KEPT,
    LABEL,
    MAX_INDEX_BYTES,
    SHARD_NAME,
    VERSION,
    check_unaltered,
    index_digest,
)
from capsdist.errors import DataError, DocumentError
from capsdist.storage.documents import parse_document

__all__ = [
    "INDEX_NAME", "KEPT", "MAX_INDEX_BYTES", "SHARD_NAME", "Compression", "Index", "Shard", "check_unpacked",
    "missing_split", "parse_index",
]  # fmt: skip

Compression: TypeAlias = Literal["none", "zstd"]

_MAX_SAMPLES = 1 << 40
_MAX_LICENCE = 4096  # characters
_NAMED = 10  # neighbours of a split that is not there, in an error
_MAX_UNPACKED = 1 << 30  # bytes of a compressed shard: its file may be small all the same

_Count = Annotated[int, Limits(ge=1, le=_MAX_SAMPLES)]


@dataclass(frozen=True)
class Shard:
    """One tar file: its name inside the split's folder, size, samples, checksums and blocks."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Annotated[str, Limits(pattern=f"^{SHARD_NAME}$")]
    size_bytes: PositiveInt
    num_samples: _Count
    xxh3_128: Annotated[str, Limits(pattern="^[0-9a-f]{32}$")]
    sha256: Annotated[str, Limits(pattern="^[0-9a-f]{64}$")]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Index(OfFields, OfShards[Shard]):
    """A split's index: the fields of a sample, names of the classes, and what the shards hold.

    `digest`, the sha256 of its canonical JSON, names the data set. Every block holds `block_size`
    samples, only the last of a shard fewer; so a sample's bytes follow from its number by arithmetic,
    and no tar header is parsed while training.
    """

    fields: tuple[Field, ...]
    classes: tuple[str, ...]
    block_size: int
    shards: tuple[Shard, ...]
    compression: Compression = "none"
    licence: str = ""
    version: int = VERSION
    digest: str = ""

    def spans(self, number: int) -> tuple[Span, ...]:
        """Return where the blocks of shard `number` lie."""
        return spans(self.shards[number].blocks, self.fields)

    def member_name(self, field: Field) -> str:
        """Return what follows the key of a block in the name of the member that holds `field`."""
        if self.version == 1:
            return "x.npy" if field.name == IMAGE else "y.npy"
        return f"{field.name}.npy" + (".zst" if self.compression == "zstd" else "")

    def to_json(self) -> str:
        """Return the document as it is stored, the digest included."""
        return json.dumps({"digest": index_digest(_document(self)), **_document(self)}, indent=1) + "\n"

    def with_digest(self) -> Index:
        """Return the same index with its digest filled in."""
        return replace(self, digest=index_digest(_document(self)))


def _document(index: Index) -> dict[str, object]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "fields": [asdict(field) for field in index.fields],
        "compression": index.compression,
        "classes": list(index.classes),
        "licence": index.licence,
        "block_size": index.block_size,
        "num_samples": index.num_samples,
        "shards": [asdict(shard, dict_factory=_without_empty) for shard in index.shards],
    }


def _without_empty(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the items as a dictionary, without sizes of members in a split that is not compressed."""
    return {name: value for name, value in items if value != ()}


class _Document(BaseModel):
    """What an index file may say, before its parts are compared with each other."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["capsdist-blocks"]
    version: Literal[2]
    fields: Annotated[tuple[StoredField, ...], Limits(min_length=2, max_length=64)]
    compression: Compression
    classes: tuple[str, ...]
    licence: Annotated[str, Limits(max_length=_MAX_LICENCE)]
    block_size: _Count
    num_samples: _Count
    shards: Annotated[tuple[Shard, ...], Limits(min_length=1)]
    digest: Annotated[str, Limits(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class _Block1:
    """A block in version 1; the places of its arrays follow from its samples."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    num_samples: PositiveInt
    images_offset_bytes: NonNegativeInt
    labels_offset_bytes: NonNegativeInt


@dataclass(frozen=True)
class _Shard1(Shard):
    """A shard in version 1."""

    blocks: tuple[_Block1, ...]  # type: ignore[assignment]


class _Document1(BaseModel):
    """What an index file of version 1 may say."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["capsdist-blocks"]
    version: Literal[1]
    image_dtype: Literal["|u1"]
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    label_dtype: Literal["<i8"]
    classes: tuple[str, ...]
    block_size: _Count
    num_samples: _Count
    shards: Annotated[tuple[_Shard1, ...], Limits(min_length=1)]
    digest: Annotated[str, Limits(pattern="^[0-9a-f]{64}$")]


def parse_index(content: bytes, path: str, remedy: str) -> Index:
    """Return the index that `content`, the file at `path`, holds; `remedy` ends an error.

    Raises:
        DataError: not JSON, of another format or version, not what its own digest says, or with values that
            no packing command writes: another type, out of range, sizes that do not fit each other.
    """
    try:
        if check_unaltered(content) == 1:
            return _of_version_1(parse_document(content, _Document1, max_bytes=MAX_INDEX_BYTES))
        found = parse_document(content, _Document, max_bytes=MAX_INDEX_BYTES)
        values: dict[str, Any] = {name: getattr(found, name) for name in _KEPT_KEYS}
        index = Index(tuple(each.field() for each in found.fields), **values)
        _check_parts(index, found.num_samples)
        return index
    except (DocumentError, DataError) as error:
        raise DataError(f"{path}: {error}; {remedy}") from None


_KEPT_KEYS = ("classes", "block_size", "shards", "compression", "licence", "version", "digest")


def _of_version_1(found: _Document1) -> Index:
    fields = (Field(IMAGE, "|u1", found.image_shape), Field(LABEL, "<i8"))
    check_fields(fields)
    shards = []
    for shard in found.shards:
        _check_block_count(shard.name, len(shard.blocks), shard.num_samples, found)
        blocks = tuple(Block(num) for num in block_sizes(shard.num_samples, found.block_size))
        places = tuple(
            _Block1(block.num_samples, *(start + ALIGNMENT for start in span.starts))
            for block, span in zip(blocks, spans(blocks, fields), strict=True)
        )
        if places != shard.blocks:
            raise _unfitting(shard.name, shard.num_samples, found)
        shards.append(Shard(**{**vars(shard), "blocks": blocks}))
    index = Index(fields, found.classes, found.block_size, tuple(shards), version=1, digest=found.digest)
    _check_parts(index, found.num_samples)
    return index


def _check_parts(index: Index, num_samples: int) -> None:
    """Check that the parts of `index` agree: fields, names, sums, and where the blocks lie.

    Raises:
        DataError: naming the first part that does not.
    """
    check_class_names(index.classes)
    check_fields(index.fields)
    if list(index.field) != sorted(index.field):
        raise DataError(f"fields are {', '.join(index.field)}; give them in the order of their names")
    total = sum(shard.num_samples for shard in index.shards)
    if total != num_samples:
        raise DataError(f"num_samples={num_samples}, but its shards hold {total}")
    names: set[str] = set()
    for number, shard in enumerate(index.shards):
        if shard.name in names:
            raise DataError(f"names {shard.name} twice")
        names.add(shard.name)
        _check_block_count(shard.name, len(shard.blocks), shard.num_samples, index)
        check_unpacked(index, shard.num_samples, f"{shard.name}: ")
        sizes = [block.num_samples for block in shard.blocks]
        compressed = {len(block.stored_bytes) for block in shard.blocks}
        fits = (
            sizes == list(block_sizes(shard.num_samples, index.block_size))
            and compressed == {len(index.fields) if index.compression == "zstd" else 0}
            and all(block.xxh3_128 for block in shard.blocks) == (index.version > 1)
        )
        if not fits or file_size(index.spans(number)[-1].end) != shard.size_bytes:
            raise _unfitting(shard.name, shard.num_samples, index)


def check_unpacked(index: Index, num_samples: int, where: str = "") -> None:
    """Check that a shard of `num_samples` samples can be unpacked in memory, if it is compressed.

    Raises:
        DataError: it cannot; `where` is how it begins.
    """
    num_bytes = num_samples * sum(field.num_bytes for field in index.fields)
    if index.compression != "none" and num_bytes > _MAX_UNPACKED:
        raise DataError(
            f"{where}{num_samples:,} samples have {num_bytes:,} bytes, a compressed shard {_MAX_UNPACKED:,} "
            "at most; lower shard_size"
        )


def _check_block_count(name: str, num_blocks: int, num_samples: int, index: Index | _Document1) -> None:
    """Count first: a forged number of samples must not make blocks by the billion."""
    if num_blocks != -(-num_samples // index.block_size):
        raise _unfitting(name, num_samples, index)


def _unfitting(name: str, num_samples: int, index: Index | _Document1) -> DataError:
    return DataError(
        f"{name}: its size and blocks are not those of {num_samples} images of "
        f"{list(index.image_shape)} in blocks of {index.block_size}"
    )


def missing_split(place: str, parent: str, siblings: Sequence[str], remedy: str) -> str:
    """Return the error for a split that is not there; `siblings`: names of those that lie beside it."""
    if not siblings:
        return f"{place}: there is no such data set; {remedy}"
    names = ", ".join([*siblings[:_NAMED], *(["..."] if len(siblings) > _NAMED else [])])
    return f"{place}: there is no such split, {parent} has {names}; name one of them, or {remedy}"
