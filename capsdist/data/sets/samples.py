"""Samples of one split before it is packed: named fields, read in storage order, a part at a time.

A set that fits in memory is an `ArraySamples`. The others keep memory bounded: `PartSamples` holds one
original file at a time, `GeneratedSamples` computes what is asked for, `SelectedSamples` is a subset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

from capsdist.errors import DataError

__all__ = [
    "ArraySamples", "Field", "GeneratedSamples", "Part", "PartSamples", "Samples", "SelectedSamples",
    "in_memory",
]  # fmt: skip


@dataclass(frozen=True)
class Field:
    """Type of one field: `dtype`, and the `shape` of one sample, () for a number."""

    dtype: np.dtype
    shape: tuple[int, ...] = ()

    @staticmethod
    def of(array: np.ndarray) -> Field:
        """Return the type of the field whose samples are the rows of `array`."""
        return Field(array.dtype, array.shape[1:])


class Samples(Protocol):
    """One split before it is packed: fields by name, read in storage order, a part at a time.

    Every set has the fields "image", uint8 (C, H, W), and "label", int64 (); some have further ones.
    """

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    @property
    def fields(self) -> Mapping[str, Field]:
        """Type of every field, by its name."""
        ...

    def read(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Return samples start .. stop - 1 of every field: arrays [stop - start, *shape].

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

    def __init__(self, **arrays: np.ndarray) -> None:
        fields = {name: Field.of(array) for name, array in arrays.items()}
        _check_fields(fields)
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"fields have different lengths, {lengths}; give one row per sample in each")
        self._arrays, self._fields = arrays, fields

    def __len__(self) -> int:
        return len(self._arrays["label"])

    @property
    def fields(self) -> Mapping[str, Field]:
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

    def __init__(self, fields: Mapping[str, Field], parts: Sequence[Part]) -> None:
        _check_fields(fields)
        self._fields, self._parts = fields, tuple(parts)
        self._starts = tuple(accumulate((part.num for part in parts), initial=0))
        self._held: tuple[int, Mapping[str, np.ndarray]] | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def fields(self) -> Mapping[str, Field]:
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

    def __init__(
        self, num: int, fields: Mapping[str, Field], make: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    ) -> None:
        _check_fields(fields)
        self._num, self._fields, self._make = num, fields, make

    def __len__(self) -> int:
        return self._num

    @property
    def fields(self) -> Mapping[str, Field]:
        """Type of every field, by its name."""
        return self._fields

    def read(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Return samples start .. stop - 1; see `Samples`."""
        _check_range(self, start, stop)
        arrays = self._make(np.arange(start, stop))
        _check_arrays(arrays, self._fields, stop - start, f"samples {start} to {stop}")
        return arrays


class SelectedSamples:
    """The samples `ids`, ascending, of other samples.

    Raises:
        DataError: `ids` are not ascending or lie outside the samples.
    """

    def __init__(self, samples: Samples, ids: np.ndarray) -> None:
        if len(ids) and not (ids[0] >= 0 and ids[-1] < len(samples) and (np.diff(ids) > 0).all()):
            raise DataError(f"numbers of samples are not ascending within 0..{len(samples) - 1}; sort them")
        self._samples, self._ids = samples, ids

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def fields(self) -> Mapping[str, Field]:
        """Type of every field, by its name."""
        return self._samples.fields

    def read(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Return samples start .. stop - 1 of the selection; see `Samples`."""
        _check_range(self, start, stop)
        ids = self._ids[start:stop]
        first, last = (int(ids[0]), int(ids[-1]) + 1) if len(ids) else (0, 0)
        return {name: array[ids - first] for name, array in self._samples.read(first, last).items()}


def in_memory(splits: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Samples]:
    """Return images uint8 [N,C,H,W] and labels int64 [N] of every split as samples."""
    return {split: ArraySamples(image=images, label=labels) for split, (images, labels) in splits.items()}


def _check_fields(fields: Mapping[str, Field]) -> None:
    image, label = fields.get("image"), fields.get("label")
    if image is None or image.dtype != np.uint8 or len(image.shape) != 3:
        raise DataError(f"field image is {_shown(image)}; give uint8 [N,C,H,W]")
    if label is None or label.dtype != np.int64 or label.shape:
        raise DataError(f"field label is {_shown(label)}; give int64 [N]")


def _check_arrays(
    arrays: Mapping[str, np.ndarray], fields: Mapping[str, Field], num: int, where: object
) -> None:
    for name, field in fields.items():
        array = arrays.get(name)
        if array is None or Field.of(array) != field or len(array) != num:
            found = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
            wanted = f"{field.dtype} {[num, *field.shape]}"
            raise DataError(f"{where}: field {name} is {found}, not {wanted}; get the original")


def _shown(field: Field | None) -> str:
    return "missing" if field is None else f"{field.dtype} {['N', *field.shape]}"
