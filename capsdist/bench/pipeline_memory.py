"""Benchmark the memory of processes that read and pack, each in a process of its own.

`python -m capsdist.bench.pipeline_memory read SPLIT BATCH EPOCHS` and `... pack PHOTOS ROOT` are these
processes; the last line of what they print is one JSON object.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from capsdist.bench.pipeline_local import CLASSES, consume
from capsdist.data import TrainStream, write_split
from capsdist.data.sets.folder import FolderOptions, pack_folder
from capsdist.errors import RunError
from capsdist.storage.temporary import temporary_folder

__all__ = ["folder_figures", "growth_figures"]

_MB = 1e6
_FIRST = 2  # epoch after which memory is compared: the first ones set up what stays
_DIFFERENT = 500  # image files; more are further names of these
_CLASSES = 200


def growth_figures(
    images: np.ndarray, labels: np.ndarray, *, global_batch_size: int, epochs: int = 20
) -> dict[str, float]:
    """Return by how many MB the resident memory of a reading process grows from epoch 2 to the last one."""
    with temporary_folder() as folder:
        write_split(folder / "split", images, labels, classes=CLASSES)
        resident = _run("read", str(folder / "split"), str(global_batch_size), str(epochs))["resident_mb"]
    return {f"memory_growth_{epochs}_epochs_mb": max(resident[-1] - resident[_FIRST - 1], 0.0)}


def folder_figures(*, num: int) -> dict[str, float]:
    """Return the peak resident memory, in MB, of a process that packs a folder of `num` image files.

    They are JPEG files of 48 to 160 pixels a side in 200 classes, packed to 64x64 pixels.
    """
    with temporary_folder() as folder:
        _write_photos(folder / "photos", num)
        found = _run("pack", str(folder / "photos"), str(folder / "data"))
    return {"folder_peak_mb": found["peak_mb"], "folder_images_per_s": num / found["seconds"]}


def _write_photos(folder: Path, num: int) -> None:
    """Write `num` JPEG files, of which 500 are different: hard links have the same content."""
    rng = np.random.default_rng(0)
    different = min(num, _DIFFERENT)
    for number in range(num):
        path = folder / f"class-{number % _CLASSES:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number >= different:
            source = number % different
            os.link(folder / f"class-{source % _CLASSES:03d}" / f"{source:06d}.jpg", path)
            continue
        height, width = rng.integers(48, 161, 2).tolist()
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def _run(*arguments: str) -> dict:
    """Run this module with `arguments`, and return what it prints.

    Raises:
        RunError: it failed.
    """
    command = [sys.executable, "-m", __name__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = next(iter(done.stderr.splitlines()[-1:]), "it printed nothing")
        raise RunError(f"{' '.join(arguments)}: the process that is measured failed ({last}); run it alone")
    return json.loads(done.stdout.splitlines()[-1])


def _read(split: str, global_batch_size: int, epochs: int) -> dict[str, list[float]]:
    """Return the resident memory after each epoch, in MB."""
    stream = TrainStream(split, seed=0, global_batch_size=global_batch_size)
    resident = []
    for epoch in range(epochs):
        consume(stream.epoch(epoch))
        resident.append(psutil.Process().memory_info().rss / _MB)
    return {"resident_mb": resident}


def _pack(photos: str, root: str) -> dict[str, float]:
    """Return the largest resident memory of this process, in MB, and the seconds that packing took."""
    start = time.perf_counter()
    pack_folder(Path(photos), FolderOptions("photos", root=root, validation=0, test=0))
    seconds = time.perf_counter() - start
    # Not that of getrusage: a new program inherits it from the process that started it.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak, "Linux tells the peak of the resident memory in /proc/self/status"
    return {"peak_mb": int(peak[1]) * 1024 / _MB, "seconds": seconds}


def _main(command: str, *arguments: str) -> None:
    if command == "read":
        split, global_batch_size, epochs = arguments
        print(json.dumps(_read(split, int(global_batch_size), int(epochs))))
    else:
        print(json.dumps(_pack(*arguments)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
