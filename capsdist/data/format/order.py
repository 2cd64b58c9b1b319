"""The order of samples: a pure function of (data set digest, seed, epoch, global batch, lanes, window).

World size, threads and prefetch never enter, so any number of ranks sees the same steps:

1. the shards of the split are permuted, an epoch each time anew;
2. the resulting sequence is cut by sample count into C lanes of equal length (to one sample);
3. each lane is permuted in windows of `window` samples;
4. step s takes samples s*B/C .. (s+1)*B/C of every lane, lane after lane; rank r of W takes the
   contiguous part floor(r*n/W) .. floor((r+1)*n/W) of the step's n samples, so that with C >= W it
   reads few shards that others read.

What is left of all lanes is a short last step; or, where every step is to be full, the epochs' steps are
written one after the other and cut anew (`TrainStream` with ``last_batch="carry"``).

Permutations sort raw 64-bit outputs of numpy's Philox, whose stream is fixed for ever (numpy's
`Generator.permutation` is not), keyed by a hash of everything above.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import xxhash

from capsdist.data.format.index import Index
from capsdist.errors import DataError

__all__ = ["Order", "permutation", "rank_slice"]


def permutation(num: int, *key: object) -> np.ndarray:
    """Return a permutation of 0 .. num - 1, int64, that is a pure function of `num` and `key`."""
    digest = xxhash.xxh3_128_digest("/".join(map(str, key)).encode())
    philox = np.random.Philox(key=int.from_bytes(digest, "big"))
    return np.argsort(philox.random_raw(num), kind="stable")


def rank_slice(num: int, rank: int, world_size: int) -> slice:
    """Return the contiguous part of `num` samples that `rank` takes: floor or ceil of num / world_size."""
    return slice(rank * num // world_size, (rank + 1) * num // world_size)


@dataclass(frozen=True)
class Order:
    """The order of all epochs of one split.

    Raises:
        DataError: `lanes` does not divide `global_batch_size`.
    """

    index: Index
    seed: int
    global_batch_size: int
    lanes: int
    window: int
    _cache: OrderedDict[tuple[int, ...], np.ndarray] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.global_batch_size % self.lanes:
            raise DataError(
                f"lanes={self.lanes} does not divide global_batch_size={self.global_batch_size}; choose a divisor"
            )

    @property
    def num_full_steps(self) -> int:
        """Steps of `global_batch_size` samples in an epoch."""
        return self.index.num_samples // self.global_batch_size

    @property
    def num_short(self) -> int:
        """Samples of the short step that ends an epoch; 0 if there is none."""
        return self.index.num_samples % self.global_batch_size

    def steps(self, epoch: int, first: int, last: int) -> np.ndarray:
        """Return the sample ids of full steps first .. last - 1 over all ranks, int64 [last - first, B]."""
        share = self.global_batch_size // self.lanes
        parts = [self._lane_samples(epoch, lane, first * share, last * share) for lane in range(self.lanes)]
        return np.concatenate([part.reshape(last - first, share) for part in parts], axis=1)

    def short_step(self, epoch: int) -> np.ndarray:
        """Return the sample ids of the short last step over all ranks, int64 [num_short]."""
        done = self.num_full_steps * (self.global_batch_size // self.lanes)
        ends = [stop - start for start, stop in map(self._lane, range(self.lanes))]
        return np.concatenate([self._lane_samples(epoch, lane, done, end) for lane, end in enumerate(ends)])

    def places(self, epoch: int, first: int, last: int) -> np.ndarray:
        """Return the samples at places first .. last - 1 of the epoch's steps, one after the other.

        int64 [last - first]; the places 0 .. num_samples - 1 are every sample once.
        """
        size, full = self.global_batch_size, self.num_full_steps
        begin, end = first // size, min(-(-last // size), full)
        parts = [self.steps(epoch, begin, end).reshape(-1)] if begin < end else []
        if last > full * size:
            parts.append(self.short_step(epoch))
        return np.concatenate(parts)[first - begin * size : last - begin * size]

    def _lane(self, lane: int) -> tuple[int, int]:
        total = self.index.num_samples
        return lane * total // self.lanes, (lane + 1) * total // self.lanes

    def _lane_samples(self, epoch: int, lane: int, first: int, last: int) -> np.ndarray:
        windows = range(first // self.window, -(-last // self.window))
        parts = [self._window(epoch, lane, number) for number in windows]
        if not parts:
            return np.empty(0, np.int64)
        offset = windows.start * self.window
        return np.concatenate(parts)[first - offset : last - offset]

    def _window(self, epoch: int, lane: int, number: int) -> np.ndarray:
        key = (epoch, lane, number)
        ids = self._cache.get(key)
        if ids is None:
            start, stop = self._lane(lane)
            begin = start + number * self.window
            size = min(self.window, stop - begin)
            shuffled = begin + permutation(size, *self._key(), "window", *key)
            self._cache[key] = ids = self._storage_ids(epoch, shuffled)
            while len(self._cache) > 2 * self.lanes:
                self._cache.popitem(last=False)
        return ids

    def _storage_ids(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Map places in the sequence of permuted shards to sample ids, which count in storage order."""
        order = permutation(len(self.index.shards), *self._key(), "shards", epoch)
        sizes = np.diff(self.index.shard_starts)[order]
        ends = np.cumsum(sizes)
        which = np.searchsorted(ends, places, side="right")
        return places - (ends - sizes)[which] + self.index.shard_starts[:-1][order][which]

    def _key(self) -> tuple[object, ...]:
        return (self.index.digest, self.seed, self.global_batch_size, self.lanes, self.window)
