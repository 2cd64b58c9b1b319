"""The order of samples as capsdist.data.format.order specifies it, in plain Python: independent and slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import xxhash

__all__ = ["Sample", "specified_epoch", "specified_permutation", "specified_steps"]

Sample: TypeAlias = tuple[int, int]
"""Epoch and sample id."""


def specified_permutation(num: int, *key: object) -> list[int]:
    """The permutation of 0 .. num - 1: indices sorted by the first raw outputs of Philox."""
    text = "/".join(str(part) for part in key)
    philox = np.random.Philox(key=int(xxhash.xxh3_128_hexdigest(text.encode()), 16))
    outputs = [int(philox.random_raw()) for _ in range(num)]
    return sorted(range(num), key=outputs.__getitem__)


def specified_epoch(
    sizes: Sequence[int], digest: str, seed: int, batch: int, lanes: int, window: int, epoch: int
) -> list[list[int]]:
    """The steps of an epoch over all ranks, the short one last; sizes: samples of each shard."""
    num, share = sum(sizes), batch // lanes
    key = (digest, seed, batch, lanes, window)
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    shards = specified_permutation(len(sizes), *key, "shards", epoch)
    sequence = [starts[n] + place for n in shards for place in range(sizes[n])]
    shuffled = []
    for lane in range(lanes):
        places = sequence[lane * num // lanes : (lane + 1) * num // lanes]
        windows = [places[start : start + window] for start in range(0, len(places), window)]
        for number, held in enumerate(windows):
            order = specified_permutation(len(held), *key, "window", epoch, lane, number)
            windows[number] = [held[i] for i in order]
        shuffled.append([i for held in windows for i in held])
    full = num // batch
    steps = [[i for lane in shuffled for i in lane[s * share : (s + 1) * share]] for s in range(full)]
    return steps + ([[i for lane in shuffled for i in lane[full * share :]]] if num % batch else [])


def specified_steps(
    last_batch: str,
    sizes: Sequence[int],
    digest: str,
    seed: int,
    batch: int,
    lanes: int,
    window: int,
    epoch: int,
) -> list[list[Sample]]:
    """What the steps of an epoch show over all ranks, with the last one short or filled ("carry")."""
    key = (digest, seed, batch, lanes, window)
    if last_batch == "short":
        return [[(epoch, i) for i in step] for step in specified_epoch(sizes, *key, epoch)]
    # A step belongs to the epoch of its first sample; counted over the samples of all epochs:
    begin = epoch * sum(sizes)
    firsts = [first for first in range(0, begin + sum(sizes), batch) if first >= begin]
    shown: list[Sample] = []
    number = epoch
    while firsts and begin + len(shown) < firsts[-1] + batch:
        shown += [(number, i) for step in specified_epoch(sizes, *key, number) for i in step]
        number += 1
    return [shown[first - begin : first - begin + batch] for first in firsts]
