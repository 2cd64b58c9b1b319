"""Measure how many images per second LitData reads: a script for a Python that has litdata, not this project.

`python litdata_rate.py FOLDER BATCH REPEATS`: the folder has images.npy, uint8 [N,C,H,W], and labels.npy,
int64 [N]. The last line that it prints is the median time of an epoch in seconds, after one that warms up.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from pathlib import Path

import numpy as np


def sample(folder: str, number: int) -> dict[str, object]:
    """Return one sample, as LitData stores it: an array of pixels and a label."""
    images, labels = _arrays(folder)
    return {"image": np.array(images[number]), "label": int(labels[number])}


@functools.cache
def _arrays(folder: str) -> tuple[np.ndarray, np.ndarray]:
    return np.load(f"{folder}/images.npy", mmap_mode="r"), np.load(f"{folder}/labels.npy", mmap_mode="r")


def main(folder: str, batch_size: int, repeats: int) -> float:
    """Pack the images with LitData, read them shuffled in this process; return the seconds of an epoch."""
    from litdata import StreamingDataLoader, StreamingDataset, optimize  # type: ignore[import-not-found]

    packed = str(Path(folder, "litdata"))
    num = len(_arrays(folder)[1])
    optimize(
        fn=functools.partial(sample, folder),
        inputs=list(range(num)),
        output_dir=packed,
        num_workers=1,
        chunk_bytes="64MB",
    )
    times = []
    loader = StreamingDataLoader(StreamingDataset(packed, shuffle=True), batch_size=batch_size, num_workers=0)
    for _ in range(repeats + 1):
        start = time.perf_counter()
        read = sum(len(batch["label"]) for batch in loader)
        times.append(time.perf_counter() - start)
        if read != num:
            raise SystemExit(f"LitData has read {read} of {num} images")
    return statistics.median(times[1:])


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
