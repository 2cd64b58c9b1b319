"""The samples of a split before they are packed, read a part at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from capsdist.data.format.fields import Field, fields_of

__all__ = ["ArraySamples", "Samples"]


class Samples(Protocol):
    """The samples of one split, in storage order."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a sample, in the order of their names."""
        ...

    @property
    def fingerprint(self) -> str:
        """What changes when the samples do; empty: unknown.

        Packing that was cut off goes on after the shards that samples with the same fingerprint have filled.
        """
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def read(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Return the samples start .. stop - 1: by field an array [stop - start, *shape].

        Samples that cannot be read may be left out: the arrays are shorter then.
        """
        ...


class ArraySamples:
    """Samples that lie in memory: arrays [N, ...] by field.

    Raises:
        DataError: as `fields_of`.
    """

    fingerprint = ""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.fields = fields_of(arrays)
        self._arrays = dict(arrays)

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def read(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Return views of the arrays."""
        return {name: array[start:stop] for name, array in self._arrays.items()}
