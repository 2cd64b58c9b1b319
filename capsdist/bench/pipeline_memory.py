"""Benchmark the memory of processes that read and pack, each in a process of its own: `pipeline_process`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from capsdist.bench import pipeline_process
from capsdist.bench.pipeline_local import CLASSES
from capsdist.data import write_split
from capsdist.errors import RunError
from capsdist.storage.temporary import temporary_folder

__all__ = ["folder_figures", "growth_figures"]

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


def _run(*arguments: str) -> dict[str, Any]:
    """Run `pipeline_process` with `arguments`, and return what it prints.

    Raises:
        RunError: it failed.
    """
    command = [sys.executable, "-m", pipeline_process.__name__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = next(iter(done.stderr.splitlines()[-1:]), "it printed nothing")
        raise RunError(f"{' '.join(arguments)}: the process that is measured failed ({last}); run it alone")
    return json.loads(done.stdout.splitlines()[-1])
