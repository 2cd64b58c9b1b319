"""Benchmark of a resident set: images a second of a stream whose split stays in memory."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable

import numpy as np
import torch

from capsdist.data import Batch, TrainStream, write_split
from capsdist.storage.temporary import temporary_folder

__all__ = ["resident_rate"]


def resident_rate(
    *,
    num: int = 60_000,
    global_batch_size: int = 128,
    repeats: int = 5,
    device: torch.device | str = "cpu",
) -> float:
    """Return the images per second of one rank that reads `num` random images of MNIST's size.

    The median of `repeats` epochs, each in an order not computed before, after one that warms up; with the
    set in the memory of `device`. On a GPU an epoch ends when its last batch is there.
    """
    place, epochs, times = torch.device(device), itertools.count(), []
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (num, 1, 28, 28), dtype=np.uint8)
    with temporary_folder() as folder:
        write_split(folder, images, draws.integers(0, 10, num), classes=list("0123456789"))
        stream = TrainStream(
            folder,
            seed=0,
            global_batch_size=global_batch_size,
            resident="device",
            device=place,
            pin=place.type == "cuda",
        )
    for _ in range(repeats + 1):
        start = time.perf_counter()
        _pass_over(stream.epoch(next(epochs)), place)
        times.append(time.perf_counter() - start)
    return num / statistics.median(times[1:])


def _pass_over(batches: Iterable[Batch], device: torch.device) -> None:
    for batch in batches:
        batch.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
