"""Measure how many images a second one rank reads from local shards, against copying and stock webdataset."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro
from webdataset.compat import WebDataset

from capsdist.data import TrainStream, check_split, write_split


def rate(num: int, work: Callable[[], object], repeats: int = 5) -> float:
    """Return `num` a second: the median of several runs of `work`, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return num / statistics.median(times[1:])


def main(global_batch: int = 128, num: int = 60_000, goals: bool = False) -> None:
    """Measure the input pipeline on random images of MNIST's size.

    Args:
        global_batch: Images a step, all for the one rank.
        num: Images of the split.
        goals: The figures of the goals only; the last line is one JSON object either way.
    """
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (num, 1, 28, 28), dtype=np.uint8)
    order = np.random.default_rng(1).permutation(num)
    with tempfile.TemporaryDirectory() as folder:
        index = write_split(folder, images, order % 10, classes="0123456789")
        stream = TrainStream(folder, seed=0, global_batch=global_batch)
        shards = [str(Path(folder, shard.name)) for shard in index.shards]
        figures = {
            "images_per_s": rate(num, lambda: sum(len(batch.labels) for batch in stream.epoch(0))),
            "gather_images_per_s": rate(num, lambda: images[order]),
            "webdataset_blocks_images_per_s": rate(
                num, lambda: list(WebDataset(shards, shardshuffle=False).decode()), repeats=2
            ),
            "check_s": 1 / rate(1, lambda: check_split(folder)),
        }
    figures["share_of_gather_rate"] = figures["images_per_s"] / figures["gather_images_per_s"]
    if not goals:
        print(f"{num:,} images of 1 x 28 x 28 in {len(shards)} shards, batches of {global_batch}, one rank")
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))


if __name__ == "__main__":
    tyro.cli(main)
