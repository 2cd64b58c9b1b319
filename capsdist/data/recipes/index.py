"""The index of a split of recipes: from which images, and by which numbers, its images are made.

`index.json` is a UTF-8 JSON object with the keys

- format, version: "capsdist-recipes", 1;
- base: split (name of a split in the same data set, of the format "capsdist-blocks" with one label an image),
  digest (of its index), first and last (its samples first .. last - 1 are used, here called digits);
- partners: images in which each digit is the lower one; pad: pixels added on each side of a digit; shift:
  largest shift of a digit in pixels, each way; both are at most the shorter side of a digit; seed;
- shard_size: samples that the order of an epoch treats as a shard, though none is stored;
- fields: as in "capsdist-blocks": `digits` <i8 [2] (sample ids in the base split, the lower digit first),
  `image` |u1 [C, H + 2 pad, W + 2 pad], `labels` <i8 [2], `shifts` <i8 [2, 2] (of each, down and right);
- classes: as of the base split; licence; num_samples: (last - first) * partners;
- digest: as in "capsdist-blocks".

With n = last - first, sample p * n + d is partner p of digit first + d: neighbours in storage are pairs of
different digits, and every window of the order of an epoch holds as many digits as samples.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt
from pydantic import Field as Limits

from capsdist.data.format.classes import check_class_names
from capsdist.data.format.described import OfFields
from capsdist.data.format.fields import Field, StoredField, check_fields
from capsdist.data.format.packed import (
    IMAGE,
    LABELS,
    MAX_INDEX_BYTES,
    RECIPES,
    check_unaltered,
    index_digest,
)
from capsdist.errors import DataError, DocumentError
from capsdist.storage.documents import parse_document

__all__ = ["DIGITS", "SHIFTS", "Base", "RecipeIndex", "parse_recipes", "recipe_fields"]

DIGITS, SHIFTS = "digits", "shifts"
"""Names of the fields that say what an image is made of."""
_VERSION = 1
_MAX_DIGITS = 1 << 31
_MAX_PARTNERS = 1 << 20
_MAX_SHARDS = 1 << 22  # the order of an epoch permutes them
_MAX_LICENCE = 4096  # characters

_Pixels = Annotated[int, Limits(ge=0, le=1 << 16)]
_Count = Annotated[int, Limits(ge=1, le=1 << 51)]


@dataclass(frozen=True)
class Base:
    """The samples first .. last - 1 of the split `split` of the same data set, whose index has `digest`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    split: Annotated[str, Limits(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    digest: Annotated[str, Limits(pattern="^[0-9a-f]{64}$")]
    first: Annotated[int, Limits(ge=0, lt=_MAX_DIGITS)]
    last: Annotated[int, Limits(ge=1, le=_MAX_DIGITS)]


@dataclass(frozen=True)
class RecipeIndex(OfFields):
    """The index of a split of recipes; the head of this file says what its parts mean."""

    base: Base
    fields: tuple[Field, ...]
    classes: tuple[str, ...]
    partners: int
    pad: int
    shift: int
    seed: int
    shard_size: int
    licence: str = ""
    digest: str = ""

    @property
    def num_digits(self) -> int:
        """Images of the base split that are used."""
        return self.base.last - self.base.first

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return self.num_digits * self.partners

    @property
    def shard_starts(self) -> np.ndarray:
        """Sample id at which each shard of the order starts, and the total last: int64 [shards + 1]."""
        return self._shard_starts

    @cached_property
    def _shard_starts(self) -> np.ndarray:
        return np.append(np.arange(0, self.num_samples, self.shard_size), self.num_samples)

    @property
    def stored(self) -> str:
        """Where the pixels come from, in words."""
        return f"recipes over {self.num_digits:,} images of {self.base.split}"

    def to_json(self) -> str:
        """Return the document as it is stored, the digest included."""
        return json.dumps({"digest": index_digest(_document(self)), **_document(self)}, indent=1) + "\n"

    def with_digest(self) -> RecipeIndex:
        """Return the same index, checked, with its digest filled in.

        Raises:
            DataError: its parts do not fit each other.
        """
        _check_parts(self, self.num_samples)
        return replace(self, digest=index_digest(_document(self)))


def recipe_fields(image_shape: tuple[int, int, int], pad: int) -> tuple[Field, ...]:
    """Return the fields of a sample made of digits of `image_shape` (C, H, W)."""
    channels, height, width = image_shape
    return (
        Field(DIGITS, "<i8", (2,)),
        Field(IMAGE, "|u1", (channels, height + 2 * pad, width + 2 * pad)),
        Field(LABELS, "<i8", (2,)),
        Field(SHIFTS, "<i8", (2, 2)),
    )


def _document(index: RecipeIndex) -> dict[str, object]:
    parts = asdict(index)
    del parts["digest"]
    return {"format": RECIPES, "version": _VERSION, "num_samples": index.num_samples, **parts}


class _Document(BaseModel):
    """What an index file may say, before its parts are compared with each other."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["capsdist-recipes"]
    version: Literal[1]
    base: Base
    fields: Annotated[tuple[StoredField, ...], Limits(min_length=4, max_length=4)]
    classes: tuple[str, ...]
    partners: Annotated[int, Limits(ge=1, le=_MAX_PARTNERS)]
    pad: _Pixels
    shift: _Pixels
    seed: NonNegativeInt
    shard_size: _Count
    licence: Annotated[str, Limits(max_length=_MAX_LICENCE)]
    num_samples: _Count
    digest: Annotated[str, Limits(pattern="^[0-9a-f]{64}$")]


def parse_recipes(content: bytes, path: str, remedy: str) -> RecipeIndex:
    """Return the index that `content`, the file at `path`, holds; `remedy` ends an error.

    Raises:
        DataError: not JSON, of another format or version, not what its own digest says, or with values that
            no packing command writes.
    """
    try:
        check_unaltered(content, (RECIPES,))
        found = parse_document(content, _Document, max_bytes=MAX_INDEX_BYTES)
        values: dict[str, Any] = {name: getattr(found, name) for name in RecipeIndex.__dataclass_fields__}
        values["fields"] = tuple(each.field() for each in found.fields)
        index = RecipeIndex(**values)
        _check_parts(index, found.num_samples)
        return index
    except (DocumentError, DataError) as error:
        raise DataError(f"{path}: {error}; {remedy}") from None


def _check_parts(index: RecipeIndex, num_samples: int) -> None:
    """Check that the parts of `index` agree.

    Raises:
        DataError: naming the first part that does not.
    """
    check_class_names(index.classes)
    base, pad = index.base, index.pad
    if base.first >= base.last:
        raise DataError(f"base has the samples {base.first} to {base.last}; give first < last")
    check_fields(index.fields)
    channels, height, width = index.image_shape
    digit = channels, height - 2 * pad, width - 2 * pad
    side = min(digit[1:])
    for name, value, least, most in (
        ("partners", index.partners, 1, _MAX_PARTNERS),
        ("pad", pad, 0, side),
        ("shift", index.shift, 0, side),
    ):
        if not least <= value <= most:
            raise DataError(f"{name}={value}: give {least} to {most}")
    if index.fields != recipe_fields(digit, pad):
        raise DataError(f"fields {', '.join(index.field)} are not those of recipes with pad={pad}")
    if num_samples != index.num_samples:
        raise DataError(f"num_samples={num_samples}, but its recipes make {index.num_samples}")
    if index.shard_size < (least := -(-num_samples // _MAX_SHARDS)):
        raise DataError(f"shard_size={index.shard_size}: give at least {least}")
