"""Samples of one split before it is packed: named fields, read in storage order, a part at a time.

A set that fits in memory is an `ArraySamples`. The others keep memory bounded: `PartSamples` holds one
original file at a time, `GeneratedSamples` computes what is asked for, `SelectedSamples` is a subset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Protocol

import numpy as np

from capsdist.data.format.fields import Field, field_list
from capsdist.data.format.packed import IMAGE
from capsdist.errors import DataError

__all__ = [
    "ArraySamples", "FieldType", "GeneratedSamples", "Part", "PartSamples", "Samples", "SelectedSamples",
    "in_memory", "sample_bytes",
]  # fmt: skip

_SPAN_BYTES = 64 << 20  # of samples, selected or not, that a selection reads at once


@dataclass(frozen=True)
class FieldType:
    """Type of one field: `dtype`, and the `shape` of one sample, () for a number."""

    dtype: np.dtype
    shape: tuple[int, ...] = ()

    @staticmethod
    def of(array: np.ndarray) -> FieldType:
        """Return the type of the field whose samples are the rows of `array`."""
        return FieldType(array.dtype, array.shape[1:])


class Samples(Protocol):
    """One split before it is packed: fields by name, read in storage order, a part at a time.

    Every set has the field "image", uint8 (C, H, W), and one of "label", int64 (), and "labels", int64 (K,),
    -1 where an image has fewer; some have further ones.
    """

    @property
    def fingerprint(self) -> str:
        """What changes when the samples do; empty if that is unknown.

        Packing that was cut off goes on after the shards that samples of the same fingerprint have filled.
        """
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    @property
    def fields(self) -> Mapping[str, FieldType]:
        """Type of every field, by its name."""
        ...

    def read(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Return samples start .. stop - 1 of every field: arrays [stop - start, *shape].

        Samples that cannot be read may be left out: the arrays are shorter then.

        Raises:
            DataError: an original file that is damaged.
            IndexError: not 0 <= start <= stop <= len(self).
        """
        ...


def _check_range(samples: Samples, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= len(samples):
        raise IndexError(f"samples {start} to {stop} of {len(samples)}; give 0 <= start <= stop <= length")


class ArraySamples:
    """Samples in memory: one array [N, *shape] for every field.

    Raises:
        DataError: "image" or "label" is missing or has another dtype, or the lengths differ.
    """

    fingerprint = ""

    def __init__(self, **arrays: np.ndarray) -> None:
        fields = {name: _type_of(name, array) for name, array in arrays.items()}
        stored_fields(fields)
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"fields have different lengths, {lengths}; give one row per sample in each")
        self._arrays, self._fields = arrays, fields

    def __len__(self) -> int:
        return len(self._arrays[IMAGE])

    @property
    def fields(self) -> Mapping[str, FieldType]:
        """Type of every field, by its name."""
        return self._fields

    def read(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Return views of samples start .. stop - 1; see `Samples`."""
        _check_range(self, start, stop)
        return {name: array[start:stop] for name, array in self._arrays.items()}


@dataclass(frozen=True)
class Part:
    """A run of samples from one original file: how many there are, and a function that reads their fields.

    where: what errors call the file.
    """

    num: int
    load: Callable[[], Mapping[str, np.ndarray]]
    where: object


class PartSamples:
    """Samples of several original files, one after the other; the file that was read last stays in memory.

    Raises:
        DataError: `fields` has no "image" or "label" of the right dtype.
    """

    fingerprint = ""

    def __init__(self, fields: Mapping[str, FieldType], parts: Sequence[Part]) -> None:
        stored_fields(fields)
        self._fields, self._parts = fields, tuple(parts)
        self._starts = tuple(accumulate((part.num for part in parts), initial=0))
        self._held: tuple[int, Mapping[str, np.ndarray]] | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def fields(self) -> Mapping[str, FieldType]:
        """Type of every field, by its name."""
        return self._fields

    def read(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Return samples start .. stop - 1; see `Samples`."""
        _check_range(self, start, stop)
        pieces: list[Mapping[str, np.ndarray]] = []
        for number, first in enumerate(self._starts[:-1]):
            part = slice(max(start - first, 0), min(stop - first, self._parts[number].num))
            if part.start < part.stop:
                arrays = self._load(number)
                pieces.append({name: arrays[name][part] for name in self._fields})
        if len(pieces) == 1:
            return pieces[0]
        empty = {name: np.empty((0, *field.shape), field.dtype) for name, field in self._fields.items()}
        return {name: np.concatenate([piece[name] for piece in pieces or [empty]]) for name in self._fields}

    def _load(self, number: int) -> Mapping[str, np.ndarray]:
        if self._held is None or self._held[0] != number:
            self._held = None  # so that two files are never in memory together
            part = self._parts[number]
            arrays = part.load()
            _check_arrays(arrays, self._fields, part.num, part.where)
            self._held = (number, arrays)
        return self._held[1]


class GeneratedSamples:
    """Samples that are computed when they are read.

    make: takes numbers of samples, int64 [n], and returns their fields [n, *shape]; a pure function.

    Raises:
        DataError: `fields` has no "image" or "label" of the right dtype.
    """

    fingerprint = ""

    def __init__(
        self,
        num: int,
        fields: Mapping[str, FieldType],
        make: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    ) -> None:
        stored_fields(fields)
        self._num, self._fields, self._make = num, fields, make

    def __len__(self) -> int:
        return self._num

    @property
    def fields(self) -> Mapping[str, FieldType]:
        """Type of every field, by its name."""
        return self._fields

    def read(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Return samples start .. stop - 1; see `Samples`."""
        _check_range(self, start, stop)
        arrays = self._make(np.arange(start, stop))
        _check_arrays(arrays, self._fields, stop - start, f"samples {start} to {stop}")
        return arrays


class SelectedSamples:
    """The samples `ids`, ascending, of other samples; those between them are read too, 64 MiB at a time.

    Raises:
        DataError: `ids` are not ascending or lie outside the samples.
    """

    fingerprint = ""

    def __init__(self, samples: Samples, ids: np.ndarray) -> None:
        if len(ids) and not (ids[0] >= 0 and ids[-1] < len(samples) and (np.diff(ids) > 0).all()):
            raise DataError(f"numbers of samples are not ascending within 0..{len(samples) - 1}; sort them")
        self._samples, self._ids = samples, ids
        self._span = max(1, _SPAN_BYTES // sample_bytes(samples.fields))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def fields(self) -> Mapping[str, FieldType]:
        """Type of every field, by its name."""
        return self._samples.fields

    def read(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Return samples start .. stop - 1 of the selection; see `Samples`."""
        _check_range(self, start, stop)
        ids = self._ids[start:stop]
        if not len(ids):
            return self._samples.read(0, 0)
        pieces = []
        for part in np.split(ids, np.flatnonzero(np.diff((ids - ids[0]) // self._span)) + 1):
            first, last = int(part[0]), int(part[-1]) + 1
            read = self._samples.read(first, last)
            pieces.append({name: array[part - first] for name, array in read.items()})
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def sample_bytes(fields: Mapping[str, FieldType]) -> int:
    """Return the bytes of all fields of one sample."""
    return sum(field.dtype.itemsize * prod(field.shape) for field in fields.values())


def in_memory(splits: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Samples]:
    """Return images uint8 [N,C,H,W] and labels int64 [N] of every split as samples."""
    return {split: ArraySamples(image=images, label=labels) for split, (images, labels) in splits.items()}


def _check_arrays(
    arrays: Mapping[str, np.ndarray], fields: Mapping[str, FieldType], num: int, where: object
) -> None:
    for name, field in fields.items():
        array = arrays.get(name)
        if array is None or FieldType.of(array) != field or len(array) != num:
            found = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
            wanted = f"{field.dtype} {[num, *field.shape]}"
            raise DataError(f"{where}: field {name} is {found}, not {wanted}; get the original")


def _type_of(name: str, array: np.ndarray) -> FieldType:
    if not isinstance(array, np.ndarray) or not array.ndim:
        raise DataError(f"{name} is a {type(array).__name__}; give a numpy array, see numpy.asarray")
    return FieldType.of(array)


def stored_fields(fields: Mapping[str, FieldType]) -> tuple[Field, ...]:
    """Return how an index states `fields`, in the order of their names.

    Raises:
        DataError: a dtype that cannot be stored, or as `check_fields`.
    """
    return field_list({name: (each.dtype, each.shape) for name, each in fields.items()})
