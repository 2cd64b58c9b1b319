"""The index of a split of encoded images, and the digest that names the data set.

`index.json` is a UTF-8 JSON object with the keys

- format, version: "capsdist-encoded", 1;
- image_shape: [C, H, W] of the images; C is 1 (grey) or 3, H and W are null where sizes differ;
- fields: list of name, dtype and shape of the other fields of a sample, in the order of names (see `fields`);
- classes: names, by label; licence: of the images, a note for people;
- location: "" if the tar files lie beside the index, else the path or s3:// URL of their folder;
- num_samples: of all shards;
- shards: list of name, size_bytes, num_samples and sha256 (hex) of a tar file, size ([H, W] of its images, or
  null), and table: name, size_bytes and sha256 of the table of its samples (see `table`);
- digest: sha256 (hex) of all other keys as ASCII JSON with sorted keys and separators "," and ":".

A file is read by what it must say: types and ranges, names of tar files without folders, no duplicate keys,
and sizes that fit each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt
from pydantic import Field as Limits

from capsdist.data.decoding import MAX_PIXELS
from capsdist.data.encoded.table import table_bytes
from capsdist.data.format.classes import check_class_names
from capsdist.data.format.described import OfShards
from capsdist.data.format.fields import Field, StoredField, check_fields
from capsdist.data.format.packed import (
    ENCODED,
    IMAGE,
    LABEL,
    LABELS,
    LOCATION,
    MAX_INDEX_BYTES,
    TABLE_NAME,
    TAR_NAME,
    check_unaltered,
    index_digest,
)
from capsdist.errors import DataError, DocumentError
from capsdist.storage.documents import parse_document

__all__ = [
    "EncodedIndex", "EncodedShard", "StoredTable", "check_other_fields", "common_size", "parse_encoded_index",
]  # fmt: skip

_VERSION = 1
_MAX_SAMPLES = 1 << 40
_MAX_FILE_BYTES = 1 << 62
_MAX_FIELDS_BYTES = 1 << 30  # of a sample without its image: a row of a table
_MAX_TEXT = 4096  # characters of a licence or location
_LEAST_BYTES = 1024  # of a sample in a tar file: a header and a block of data

_Digest = Annotated[str, Limits(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, Limits(ge=1, le=_MAX_SAMPLES)]


@dataclass(frozen=True)
class StoredTable:
    """The file of a table: its name beside the index, size and checksum."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Annotated[str, Limits(pattern=f"^{TABLE_NAME}$")]
    size_bytes: PositiveInt
    sha256: _Digest


@dataclass(frozen=True)
class EncodedShard:
    """One tar file: name, size, samples, checksum, height and width of its images if all are equal, table."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Annotated[str, Limits(pattern=f"^{TAR_NAME}$")]
    size_bytes: Annotated[int, Limits(ge=1, le=_MAX_FILE_BYTES)]
    num_samples: _Count
    sha256: _Digest
    size: tuple[PositiveInt, PositiveInt] | None
    table: StoredTable


@dataclass(frozen=True)
class EncodedIndex(OfShards[EncodedShard]):
    """What the tar files of a split hold; a `SourceIndex`.

    other_fields: of a sample without its image; stored_size: height and width of all images, None if they
    differ; decode_size: height and width that a reader scales images to, None: the stored one.
    """

    num_channels: int
    stored_size: tuple[int, int] | None
    other_fields: tuple[Field, ...]
    classes: tuple[str, ...]
    shards: tuple[EncodedShard, ...]
    licence: str = ""
    location: str = ""
    digest: str = ""
    decode_size: tuple[int, int] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in 0 .. num_classes - 1."""
        return len(self.classes)

    @property
    def field(self) -> Mapping[str, Field]:
        """The fields of a sample by name; `image` has the shape that the reader returns, if that is known."""
        return self._field

    @cached_property
    def _field(self) -> Mapping[str, Field]:
        known = self.decode_size or self.stored_size
        image = [Field(IMAGE, "|u1", self.image_shape)] if known else []
        return {field.name: field for field in (*image, *self.other_fields)}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images that the reader returns.

        Raises:
            DataError: images have different sizes, and no `decode_size` is given.
        """
        size = self.decode_size or self.stored_size
        if size is None:
            raise DataError(
                "the images have different sizes; set data.decode_size to the size to decode them to"
            )
        return self.num_channels, *size

    @property
    def stored_shape(self) -> tuple[int | None, ...]:
        """Shape (C, H, W) of the images as they are stored, None where it differs."""
        return self.num_channels, *(self.stored_size or (None, None))

    @property
    def image_bytes(self) -> int:
        """Bytes of one decoded image (uint8)."""
        channels, height, width = self.image_shape
        return channels * height * width

    @property
    def label_name(self) -> str:
        """`label`, or `labels` where an image has several."""
        return LABEL if any(field.name == LABEL for field in self.other_fields) else LABELS

    def to_json(self) -> str:
        """Return the document as it is stored, the digest included."""
        return json.dumps({"digest": index_digest(_document(self)), **_document(self)}, indent=1) + "\n"

    def with_digest(self) -> EncodedIndex:
        """Return the same index with its digest filled in."""
        return replace(self, digest=index_digest(_document(self)))


def common_size(shards: tuple[EncodedShard, ...]) -> tuple[int, int] | None:
    """Return height and width of the images of `shards` if they are equal in all of them."""
    sizes = {shard.size for shard in shards}
    return sizes.pop() if len(sizes) == 1 else None


def _document(index: EncodedIndex) -> dict[str, object]:
    # The size is written as a list, as JSON returns it: the digest is that of the JSON text.
    return {
        "format": ENCODED,
        "version": _VERSION,
        "image_shape": list(index.stored_shape),
        "fields": [asdict(field) for field in index.other_fields],
        "classes": list(index.classes),
        "licence": index.licence,
        "location": index.location,
        "num_samples": index.num_samples,
        "shards": [asdict(shard) for shard in index.shards],
    }


class _Document(BaseModel):
    """What an index file may say, before its parts are compared with each other."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["capsdist-encoded"]
    version: Literal[1]
    image_shape: tuple[Literal[1, 3], PositiveInt | None, PositiveInt | None]
    fields: Annotated[tuple[StoredField, ...], Limits(min_length=1, max_length=64)]
    classes: tuple[str, ...]
    licence: Annotated[str, Limits(max_length=_MAX_TEXT)]
    location: Annotated[str, Limits(max_length=_MAX_TEXT, pattern=f"^{LOCATION}$")]
    num_samples: _Count
    shards: Annotated[tuple[EncodedShard, ...], Limits(min_length=1)]
    digest: _Digest


def parse_encoded_index(content: bytes, path: str, remedy: str) -> EncodedIndex:
    """Return the index that `content`, the file at `path`, holds; `remedy` ends an error.

    Raises:
        DataError: not JSON, of another format or version, not what its own digest says, or with values that
            no packing command writes.
    """
    try:
        check_unaltered(content, (ENCODED,))
        found = parse_document(content, _Document, max_bytes=MAX_INDEX_BYTES)
        channels, *size = found.image_shape
        index = EncodedIndex(
            num_channels=channels,
            stored_size=common_size(found.shards),
            other_fields=tuple(each.field() for each in found.fields),
            classes=found.classes,
            shards=found.shards,
            licence=found.licence,
            location=found.location,
            digest=found.digest,
        )
        _check_parts(index, tuple(size), found.num_samples)
        return index
    except (DocumentError, DataError) as error:
        raise DataError(f"{path}: {error}; {remedy}") from None


def check_other_fields(fields: tuple[Field, ...]) -> None:
    """Check the fields of a sample without its image; see `check_fields`.

    Raises:
        DataError: naming the field that is missing, of another type or too large.
    """
    check_fields((Field(IMAGE, "|u1", (1, 1, 1)), *fields))
    if (num_bytes := sum(field.num_bytes for field in fields)) > _MAX_FIELDS_BYTES:
        raise DataError(
            f"fields have {num_bytes:,} bytes a sample, at most {_MAX_FIELDS_BYTES:,} are stored; give less"
        )
    names = [field.name for field in fields]
    if names != sorted(names):
        raise DataError(f"fields are {', '.join(names)}; give them in the order of their names")


def _check_parts(index: EncodedIndex, size: tuple[int | None, ...], num_samples: int) -> None:
    """Check that the parts of `index` agree.

    Raises:
        DataError: naming the first part that does not.
    """
    check_class_names(index.classes)
    check_other_fields(index.other_fields)
    if index.num_samples != num_samples:
        raise DataError(f"num_samples={num_samples}, but its shards hold {index.num_samples}")
    if size != (index.stored_size or (None, None)):
        raise DataError(f"image_shape has the size {list(size)}, its shards have another")
    names: set[str] = set()
    for shard in index.shards:
        for name in (shard.name, shard.table.name):
            if name in names:
                raise DataError(f"names {name} twice")
            names.add(name)
        if shard.num_samples * _LEAST_BYTES > shard.size_bytes:
            raise DataError(
                f"{shard.name}: {shard.num_samples} samples do not fit into {shard.size_bytes} bytes"
            )
        if shard.size and shard.size[0] * shard.size[1] > MAX_PIXELS:
            raise DataError(f"{shard.name}: images of {shard.size} have more than {MAX_PIXELS:,} pixels")
        if shard.table.size_bytes != table_bytes(index.other_fields, shard.num_samples):
            raise DataError(f"{shard.table.name}: its size is not that of {shard.num_samples} samples")
