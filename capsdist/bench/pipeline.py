"""Benchmark the input pipeline beside a plain permuted copy and stock webdataset on the same shards."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import numpy as np
import xxhash
from webdataset.compat import WebDataset

from capsdist.data import Split, TrainStream, check_split, write_split
from capsdist.storage.temporary import temporary_folder

__all__ = ["pipeline_figures"]


def pipeline_figures(*, num: int, global_batch_size: int, repeats: int) -> dict[str, float]:
    """Return the figures of one rank that reads `num` random images of MNIST's size from local shards.

    Medians of `repeats` epochs, each in an order not computed before; the shards are in the page cache.
    `share_of_gather_rate` is against a permuted copy out of one array in memory: the least a shuffle costs.
    Cost of the protection against files that change: `first_epoch_images_per_s` is of an epoch that reads
    every shard and compares its checksum (`images_per_s` is of later ones, which find them in memory);
    `read_s` and `checksum_s` are parts of it: reading all files, and hashing what was read.
    `unheld_images_per_s` is of a reader without memory for shards: a system call an image, and the file's
    times compared.
    """
    images = np.random.default_rng(0).integers(0, 256, (num, 1, 28, 28), dtype=np.uint8)
    shuffled, epochs = np.random.default_rng(1).permutation(num), itertools.count()
    with temporary_folder() as folder:
        index = write_split(folder, images, shuffled % 10, classes=list("0123456789"))
        stream = TrainStream(folder, seed=0, global_batch_size=global_batch_size)
        stock = WebDataset([f"{folder}/{shard.name}" for shard in index.shards], shardshuffle=False).decode()
        unheld = TrainStream(folder, seed=0, global_batch_size=global_batch_size)
        cast(Split, unheld.split).memory_bytes = 0
        files = [Path(folder, shard.name) for shard in index.shards]
        contents = [path.read_bytes() for path in files]
        figures = {
            "images_per_s": num / _seconds(lambda: list(map(id, stream.epoch(next(epochs)))), repeats),
            "first_epoch_images_per_s": num
            / _seconds(lambda: _first_epoch(folder, global_batch_size), repeats),
            "unheld_images_per_s": num / _seconds(lambda: list(map(id, unheld.epoch(next(epochs)))), 3),
            "read_s": _seconds(lambda: [path.read_bytes() for path in files], repeats),
            "checksum_s": _seconds(lambda: list(map(xxhash.xxh3_128_digest, contents)), repeats),
            "gather_images_per_s": num / _seconds(lambda: images[shuffled], repeats),
            "webdataset_blocks_images_per_s": num / _seconds(lambda: list(cast(Iterable, stock)), 3),
            "check_s": _seconds(lambda: check_split(folder), repeats),
        }
    return figures | {"share_of_gather_rate": figures["images_per_s"] / figures["gather_images_per_s"]}


def _first_epoch(folder: Path, global_batch_size: int) -> None:
    for _ in TrainStream(folder, seed=0, global_batch_size=global_batch_size).epoch(0):
        pass


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of `repeats` runs of `work`, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
