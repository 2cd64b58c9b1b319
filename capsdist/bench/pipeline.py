"""Rate of the input pipeline, beside a plain permuted copy and stock webdataset on the same shards."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import cast

import numpy as np
from webdataset.compat import WebDataset

from capsdist.data import TrainStream, check_split, write_split
from capsdist.storage.temporary import temporary_folder

__all__ = ["pipeline_figures"]


def pipeline_figures(*, num: int, global_batch: int, repeats: int) -> dict[str, float]:
    """Return the figures of one rank that reads `num` random images of MNIST's size from local shards.

    Medians of `repeats` epochs, each in an order not computed before; the shards are in the page cache.
    `share_of_gather_rate` is against a permuted copy out of one array in memory: the least a shuffle costs.
    """
    images = np.random.default_rng(0).integers(0, 256, (num, 1, 28, 28), dtype=np.uint8)
    shuffled, epochs = np.random.default_rng(1).permutation(num), itertools.count()
    with temporary_folder() as folder:
        index = write_split(folder, images, shuffled % 10, classes=list("0123456789"))
        stream = TrainStream(folder, seed=0, global_batch=global_batch)
        stock = WebDataset([f"{folder}/{shard.name}" for shard in index.shards], shardshuffle=False).decode()
        figures = {
            "images_per_s": num / _seconds(lambda: list(map(id, stream.epoch(next(epochs)))), repeats),
            "gather_images_per_s": num / _seconds(lambda: images[shuffled], repeats),
            "webdataset_blocks_images_per_s": num / _seconds(lambda: list(cast(Iterable, stock)), 3),
            "check_s": _seconds(lambda: check_split(folder), repeats),
        }
    return figures | {"share_of_gather_rate": figures["images_per_s"] / figures["gather_images_per_s"]}


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of `repeats` runs of `work`, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
