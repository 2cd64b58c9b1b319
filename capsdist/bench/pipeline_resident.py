"""Benchmark resident sets: splits that stay in the memory of the device, where no bytes travel in a step."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from capsdist.bench.pipeline_local import CLASSES, consume
from capsdist.bench.timer import time_side_by_side
from capsdist.data import TrainStream, write_split
from capsdist.storage.temporary import temporary_folder

__all__ = ["resident_figures"]

_EPOCHS = 5  # at a time: one takes 50 ms


def resident_figures(
    images: np.ndarray, labels: np.ndarray, *, global_batch_size: int, repeats: int
) -> dict[str, float]:
    """Return the rate `resident_images_per_s` of one process that holds `images` [n,1,28,28] on its device.

    Median of `repeats` runs of 5 epochs, each in an order not computed before. On a GPU an epoch ends when
    its last batch is there.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with temporary_folder() as folder:
        write_split(folder, images, labels, classes=CLASSES)
        stream = TrainStream(
            folder,
            seed=0,
            global_batch_size=global_batch_size,
            resident="device",
            device=device,
            pin=device.type == "cuda",
        )
        epochs = itertools.count()

        def read() -> None:
            for _ in range(_EPOCHS):
                consume(batch.to(device) for batch in stream.epoch(next(epochs)))
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        timings = time_side_by_side({"resident": read}, budget_s=0, min_rounds=repeats)
    return {"resident_images_per_s": _EPOCHS * len(images) / timings["resident"].median_s}
