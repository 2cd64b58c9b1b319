"""The fields of a sample: name, dtype and shape, in every sample of a split alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import ConfigDict
from pydantic import Field as Limits

from capsdist.data.format.packed import IMAGE, LABEL, LABELS
from capsdist.errors import DataError

__all__ = ["Field", "StoredField", "check_fields", "check_not_decoded", "field_list"]

_MAX_SIDE = 1 << 16  # pixels, channels, or other numbers
_MAX_BYTES = 1 << 30
_DTYPES = ("|u1", "|b1", "<i2", "<i4", "<i8", "<f4", "<f8")

_Side = Annotated[int, Limits(ge=1, le=_MAX_SIDE)]
_Name: TypeAlias = Annotated[str, Limits(pattern="^[a-z][a-z0-9_]{0,31}$")]
_Dtype: TypeAlias = Literal["|u1", "|b1", "<i2", "<i4", "<i8", "<f4", "<f8"]
_Shape: TypeAlias = Annotated[tuple[_Side, ...], Limits(max_length=4)]


@dataclass(frozen=True)
class Field:
    """One field of every sample; dtype: as numpy writes it in .npy files; shape: of one sample."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: _Name
    dtype: _Dtype
    shape: _Shape = ()

    @cached_property
    def numpy(self) -> np.dtype:
        """The dtype."""
        return np.dtype(self.dtype)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of one sample."""
        return self.numpy.itemsize * prod(self.shape)


@dataclass(frozen=True)
class StoredField:
    """A field as an index has it: always with its shape, so that equal indexes have equal digests."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: _Name
    dtype: _Dtype
    shape: _Shape

    def field(self) -> Field:
        """Return the field."""
        return Field(self.name, self.dtype, self.shape)


def check_fields(fields: Sequence[Field]) -> None:
    """Check that a sample of `fields` has an image and a label, and nothing twice.

    Raises:
        DataError: naming the field that is missing, of another type or too large.
    """
    by_name = {field.name: field for field in fields}
    if len(by_name) != len(fields):
        raise DataError(f"fields {[field.name for field in fields]} have a name twice; give each once")
    image = by_name.get(IMAGE)
    if image is None or image.dtype != "|u1" or len(image.shape) != 3:
        raise DataError(f"field image is {_shown(image)}; give uint8 [C, H, W]")
    if not all(1 <= side <= _MAX_SIDE for side in image.shape) or image.num_bytes > _MAX_BYTES:
        raise DataError(
            f"image_shape={list(image.shape)}: each of C, H, W may be 1 to {_MAX_SIDE:,}, and an image "
            f"{_MAX_BYTES:,} bytes at most"
        )
    if (LABEL in by_name) == (LABELS in by_name):
        raise DataError(f"fields are {', '.join(by_name)}; give one of label and labels")
    if LABEL in by_name and by_name[LABEL] != Field(LABEL, "<i8"):
        raise DataError(f"field label is {_shown(by_name[LABEL])}; give int64, one a sample")
    labels = by_name.get(LABELS)
    if labels and (labels.dtype != "<i8" or len(labels.shape) != 1 or labels.shape[0] < 2):
        raise DataError(f"field labels is {_shown(labels)}; give int64 [K], K at least 2, or a field label")
    for field in fields:
        if field.num_bytes > _MAX_BYTES:
            raise DataError(f"field {field.name} has {field.num_bytes:,} bytes a sample; give less")


def field_list(types: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> tuple[Field, ...]:
    """Return the fields of these names, dtypes and shapes of one sample, in the order of their names.

    Raises:
        DataError: a dtype that cannot be stored, or as `check_fields`.
    """
    fields = []
    for name, (dtype, shape) in sorted(types.items()):
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
        if descr not in _DTYPES:
            raise DataError(f"field {name} is {dtype}; give uint8, bool, int16/32/64 or float32/64")
        fields.append(Field(name, descr, tuple(int(side) for side in shape)))
    check_fields(fields)
    return tuple(fields)


def _shown(field: Field | None) -> str:
    return "missing" if field is None else f"{np.dtype(field.dtype)} {list(field.shape)}"


def check_not_decoded(image_shape: tuple[int, int, int], size: tuple[int, int] | None, place: str) -> None:
    """Check that pixels of `image_shape` (C, H, W), stored at `place`, have the height and width `size`.

    Raises:
        DataError: a size is given, and it is another one.
    """
    if size not in (None, image_shape[1:]):
        raise DataError(
            f"{place}: holds pixels of {image_shape[1:]}, which are not decoded to {size}; "
            "leave out data.decode_size, and use data.resize"
        )
