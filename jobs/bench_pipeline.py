"""Measure how many images a second one rank reads from local shards, against copying and stock webdataset."""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import numpy as np
import torch
import tyro
from webdataset.compat import WebDataset

from capsdist.bench.record import write_record
from capsdist.data import TrainStream, check_split, write_split

RECORDS = Path(__file__).parent / "records"


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of `repeats` runs of `work`, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main(
    global_batch: int = 128, num: int = 60_000, repeats: int = 25, goals: bool = False, record: bool = False
) -> None:
    """Measure the input pipeline on random images of MNIST's size; the last line is one JSON object.

    Args:
        global_batch: Images of a step.
        num: Images of the split.
        repeats: Epochs read, of which the median counts.
        goals: Only 5 epochs, a few seconds in all.
        record: Write a record below jobs/records.
    """
    torch.set_num_threads(1)
    repeats = 5 if goals else repeats
    images = np.random.default_rng(0).integers(0, 256, (num, 1, 28, 28), dtype=np.uint8)
    shuffled, epochs = np.random.default_rng(1).permutation(num), itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        index = write_split(folder, images, shuffled % 10, classes="0123456789")
        stream = TrainStream(folder, seed=0, global_batch=global_batch)
        stock = WebDataset([f"{folder}/{shard.name}" for shard in index.shards], shardshuffle=False).decode()
        figures = {
            "images_per_s": num / seconds(lambda: list(map(id, stream.epoch(next(epochs)))), repeats),
            "gather_images_per_s": num / seconds(lambda: images[shuffled], repeats),
            "webdataset_blocks_images_per_s": num / seconds(lambda: list(cast(Iterable, stock)), 3),
            "check_s": seconds(lambda: check_split(folder), repeats),
        }
    figures["share_of_gather_rate"] = figures["images_per_s"] / figures["gather_images_per_s"]
    last_line = json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()})
    if record:
        config = {"global_batch": global_batch, "num": num, "repeats": repeats, "image_shape": [1, 28, 28]}
        write_record(RECORDS, "pipeline", config=config, figures=figures, log=last_line + "\n")
    print(last_line)


if __name__ == "__main__":
    tyro.cli(main)
