"""The index of a split: what its shards hold, byte for byte, and the digest that names the data set.

`index.json` is a UTF-8 JSON object with the keys

- format, version: "capsdist-blocks", 1; a reader refuses others;
- image_dtype "|u1", image_shape [C, H, W], label_dtype "<i8";
- classes: names, by label; block_size, num_samples: see `layout`;
- shards: list of name, size_bytes, num_samples, xxh3_128 and sha256 (hex, of the file), and blocks: list of
  num_samples, images_offset_bytes, labels_offset_bytes (from the start of the file);
- digest: sha256 (hex) of all other keys as ASCII JSON with sorted keys and separators "," and ":".

It is withdrawn before shards are written and published after them, by a rename: a folder without one was
never finished. A file is read by what it must say: types and ranges, names `shard-NNNNN.tar`, no duplicate
keys, and offsets that follow from the shape of the images: a forged one leads to no other bytes or files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from capsdist.data.format.classes import check_class_names
from capsdist.data.format.layout import Block, place_blocks
from capsdist.data.format.packed import (
    FORMAT,
    INDEX_NAME,
    KEPT,
    MAX_INDEX_BYTES,
    SHARD_NAME,
    VERSION,
    check_unaltered,
    index_digest,
)
from capsdist.errors import DataError, DocumentError
from capsdist.storage.documents import parse_document

__all__ = [
    "INDEX_NAME", "KEPT", "MAX_INDEX_BYTES", "SHARD_NAME", "Index", "Shard", "check_image_shape",
    "missing_split", "parse_index",
]  # fmt: skip

_MAX_SIDE = 1 << 16  # pixels, or channels
_MAX_IMAGE_BYTES = 1 << 30
_MAX_SAMPLES = 1 << 40

_Side = Annotated[int, Field(ge=1, le=_MAX_SIDE)]
_Count = Annotated[int, Field(ge=1, le=_MAX_SAMPLES)]


@dataclass(frozen=True)
class Shard:
    """One tar file: its name inside the split's folder, size, samples, checksums and blocks."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=f"^{SHARD_NAME}$")]
    size_bytes: PositiveInt
    num_samples: _Count
    xxh3_128: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Index:
    """A split's index: image_shape (C, H, W), names of the classes, and what the shards hold.

    `digest`, the sha256 of its canonical JSON, names the data set. Every block holds `block_size`
    samples, only the last of a shard fewer; so a sample's bytes follow from its number by arithmetic,
    and no tar header is parsed while training.
    """

    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    block_size: int
    shards: tuple[Shard, ...]
    digest: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in 0 .. num_classes - 1."""
        return len(self.classes)

    @property
    def image_bytes(self) -> int:
        """Bytes of one image (uint8)."""
        return prod(self.image_shape)

    @cached_property
    def shard_starts(self) -> np.ndarray:
        """Sample id at which each shard starts, and the total last: int64 [shards + 1]."""
        return np.concatenate([[0], np.cumsum([shard.num_samples for shard in self.shards], dtype=np.int64)])

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return int(self.shard_starts[-1])

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
        "image_dtype": "|u1",
        "image_shape": list(index.image_shape),
        "label_dtype": "<i8",
        "classes": list(index.classes),
        "block_size": index.block_size,
        "num_samples": index.num_samples,
        "shards": [asdict(shard) for shard in index.shards],
    }


class _Document(BaseModel):
    """What an index file may say, before its parts are compared with each other."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["capsdist-blocks"]
    version: Literal[1]
    image_dtype: Literal["|u1"]
    image_shape: tuple[_Side, _Side, _Side]
    label_dtype: Literal["<i8"]
    classes: tuple[str, ...]
    block_size: _Count
    num_samples: _Count
    shards: Annotated[tuple[Shard, ...], Field(min_length=1)]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def parse_index(content: bytes, path: str, remedy: str) -> Index:
    """Return the index that `content`, the file at `path`, holds; `remedy` ends an error.

    Raises:
        DataError: not JSON, of another format or version, not what its own digest says, or with values that
            no packing command writes: another type, out of range, offsets that do not follow from the shape.
    """
    try:
        check_unaltered(content)
        found = parse_document(content, _Document, max_bytes=MAX_INDEX_BYTES)
        index = Index(found.image_shape, found.classes, found.block_size, found.shards, found.digest)
        _check_geometry(index, found.num_samples)
    except (DocumentError, DataError) as error:
        raise DataError(f"{path}: {error}; {remedy}") from None
    return index


def check_image_shape(shape: tuple[int, int, int]) -> None:
    """Check that images of `shape` (C, H, W) can be stored.

    Raises:
        DataError: a side of 0 or more than 65,536, or an image of more than 1 GiB.
    """
    if not all(1 <= side <= _MAX_SIDE for side in shape) or prod(shape) > _MAX_IMAGE_BYTES:
        raise DataError(
            f"image_shape={list(shape)}: each of C, H, W may be 1 to {_MAX_SIDE:,}, and an image "
            f"{_MAX_IMAGE_BYTES:,} bytes at most"
        )


def _check_geometry(index: Index, num_samples: int) -> None:
    """Check that the parts of `index` agree: names, sums, and where the blocks lie.

    Raises:
        DataError: naming the first part that does not.
    """
    check_class_names(index.classes)
    check_image_shape(index.image_shape)
    total = sum(shard.num_samples for shard in index.shards)
    if total != num_samples:
        raise DataError(f"num_samples={num_samples}, but its shards hold {total}")
    names: set[str] = set()
    for shard in index.shards:
        if shard.name in names:
            raise DataError(f"names {shard.name} twice")
        names.add(shard.name)
        # Counted first: a forged number of samples must not make blocks by the billion.
        fits = len(shard.blocks) == -(-shard.num_samples // index.block_size)
        expected = (shard.blocks, shard.size_bytes)
        if not fits or place_blocks(shard.num_samples, index.block_size, index.image_bytes) != expected:
            raise DataError(
                f"{shard.name}: its size and blocks are not those of {shard.num_samples} images of "
                f"{list(index.image_shape)} in blocks of {index.block_size}"
            )


def missing_split(place: str, parent: str, siblings: Sequence[str], remedy: str) -> str:
    """Return the error for a split that is not there; `siblings`: names of those that lie beside it."""
    if not siblings:
        return f"{place}: there is no such data set; {remedy}"
    return (
        f"{place}: there is no such split, {parent} has {', '.join(siblings)}; name one of them, or {remedy}"
    )
