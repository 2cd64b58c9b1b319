"""The index of a split: what its shards hold, byte for byte, and the digest that names the data set.

Ours. One JSON document a split, published after its shards. README.md in this folder is the format
specification.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from capsdist.errors import DataError

__all__ = ["FORMAT", "INDEX_NAME", "KEPT", "VERSION", "Block", "Index", "Shard", "parse_index"]

FORMAT = "capsdist-blocks"
VERSION = 1
INDEX_NAME = "index.json"
KEPT = "pack the set again, intact shards are kept"


@dataclass(frozen=True)
class Block:
    """Where one block's pixels and labels lie inside its shard: byte offsets of the raw arrays."""

    num_samples: int
    images_offset_bytes: int
    labels_offset_bytes: int


@dataclass(frozen=True)
class Shard:
    """One tar file: its name inside the split's folder, size, samples, checksums and blocks."""

    name: str
    size_bytes: int
    num_samples: int
    xxh3_128: str
    sha256: str
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
        return json.dumps({"digest": _digest(self), **_document(self)}, indent=1) + "\n"

    def with_digest(self) -> Index:
        """Return the same index with its digest filled in."""
        return replace(self, digest=_digest(self))


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


def _digest(index: Index) -> str:
    canonical = json.dumps(_document(index), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse_index(text: str, path: str, remedy: str) -> Index:
    """Return the index that `text`, the file at `path`, holds; `remedy` ends an error.

    Raises:
        DataError: not JSON, of another format or version, or not what its own digest says.
    """
    try:
        document = json.loads(text)
        found = (document["format"], document["version"])
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: is not an index of this project; {remedy}") from None
    if found != (FORMAT, VERSION):
        raise DataError(
            f"{path}: has format {found[0]!r} version {found[1]!r}, this program reads {FORMAT!r} version "
            f"{VERSION}; {remedy}"
        )
    index = _from_document(document)
    if index is None or json.loads(index.to_json()) != document:
        raise DataError(f"{path}: was altered, it does not match its own digest; {remedy}")
    return index


def _from_document(document: dict[str, Any]) -> Index | None:
    try:
        return Index(
            image_shape=tuple(document["image_shape"]),
            classes=tuple(document["classes"]),
            block_size=document["block_size"],
            shards=tuple(
                Shard(**{**entry, "blocks": tuple(Block(**block) for block in entry["blocks"])})
                for entry in document["shards"]
            ),
            digest=document["digest"],
        )
    except (KeyError, TypeError):
        return None
