"""The order of samples: a pure function of (digest, seed, global batch B, lanes C, window).

World size, threads and prefetch never enter, so any number of ranks sees the same steps.
`permutation(n, *key)` joins the parts of the key with "/" as UTF-8 text; its xxh3_128 (big-endian) is the
key of Philox4x64-10, counter 0; the indices 0 .. n-1 are sorted by its first n raw 64-bit outputs, stably.
(The stream of Philox is fixed, that of numpy's `Generator.permutation` is not.) With
`key = (digest, seed, B, C, window)` and N samples:

1. shards are permuted by `permutation(num_shards, *key, "shards", epoch)`;
2. lane c is places c*N//C .. (c+1)*N//C - 1 of the resulting sequence of samples;
3. window w of lane c, `window` places long (the last one shorter), is permuted by
   `permutation(length, *key, "window", epoch, c, w)`;
4. step s takes places s*B/C .. (s+1)*B/C - 1 of every lane, lane after lane; what is left of all lanes is
   the short last step. With ``last_batch="carry"`` (`TrainStream`) step s of a run takes places
   s*B .. (s+1)*B - 1 of the steps of all epochs, short ones included, written one after the other;
5. rank r of W takes r*n//W .. (r+1)*n//W - 1 of the n samples of a step; with C >= W it reads few shards that
   other ranks read. All ranks get ceil(n/W) rows; a row too many repeats a sample of the rank, with weight 0.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import xxhash

from capsdist.data.format.source import SourceIndex
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

    index: SourceIndex
    seed: int
    global_batch_size: int
    lanes: int
    window: int
    _cache: OrderedDict[tuple[int, ...], np.ndarray] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.global_batch_size % self.lanes:
            raise DataError(
                f"lanes={self.lanes} does not divide global_batch_size={self.global_batch_size}; "
                "choose a divisor"
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
        order = permutation(len(self.index.shard_starts) - 1, *self._key(), "shards", epoch)
        sizes = np.diff(self.index.shard_starts)[order]
        ends = np.cumsum(sizes)
        which = np.searchsorted(ends, places, side="right")
        return places - (ends - sizes)[which] + self.index.shard_starts[:-1][order][which]

    def _key(self) -> tuple[object, ...]:
        return (self.index.digest, self.seed, self.global_batch_size, self.lanes, self.window)
