"""Room in memory for the samples of shards, so that one call gathers from all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from capsdist.data.format.fields import Field

__all__ = ["Room"]


class Room:
    """Arrays with a row for every sample, of which each shard has `shard_size` that follow each other.

    numpy copies rows of one array to where they belong in one pass; a temporary array for each shard would
    make it two. The system gives the memory of a row when it is first written.
    """

    def __init__(self, fields: Sequence[Field], shard_size: int, num_shards: int) -> None:
        rows = shard_size * num_shards
        self._arrays = {field.name: np.empty((rows, *field.shape), field.numpy) for field in fields}
        self._free = [number * shard_size for number in reversed(range(num_shards))]

    @property
    def is_full(self) -> bool:
        """Have all shards that fit been put?"""
        return not self._free

    def put(self, blocks: Sequence[Mapping[str, np.ndarray]]) -> int:
        """Copy the blocks of a shard, arrays [n, ...] by field, and return the row of its first sample."""
        row = first = self._free.pop()
        for block in blocks:
            num = len(next(iter(block.values())))
            for name, array in self._arrays.items():
                array[row : row + num] = block[name]
            row += num
        return first

    def release(self, first: int) -> None:
        """Give the rows from `first` on to another shard."""
        self._free.append(first)

    def take(self, rows: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Copy `rows` [n] into `out`: arrays [n, ...] by field."""
        for name, target in out.items():
            # "clip" spares a buffer of the size of `target`; no row is outside.
            np.take(self._arrays[name], rows, axis=0, out=target, mode="clip")
