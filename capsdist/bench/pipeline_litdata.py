"""Benchmark the input pipeline beside LitData, which needs a Python of its own."""

from __future__ import annotations

import itertools
import statistics
import subprocess
from pathlib import Path

import numpy as np

from capsdist.bench import litdata_rate
from capsdist.bench.pipeline_local import CLASSES, consume
from capsdist.bench.timer import time_side_by_side
from capsdist.data import TrainStream, write_split
from capsdist.errors import RunError
from capsdist.storage.temporary import temporary_folder

__all__ = ["litdata_figures"]

_EPOCHS = 5


def litdata_figures(
    images: np.ndarray, labels: np.ndarray, *, python: str, global_batch_size: int, repeats: int
) -> dict[str, float]:
    """Return the rate of LitData over the same images, shuffled and batched in one process, and our speed-up.

    python: path of an interpreter that has litdata. Ours is measured before and after it.

    Raises:
        RunError: it cannot be run, or fails.
    """
    epochs = itertools.count()
    with temporary_folder() as folder:
        write_split(folder / "split", images, labels, classes=CLASSES)
        stream = TrainStream(folder / "split", seed=0, global_batch_size=global_batch_size)

        def ours() -> tuple[float, ...]:
            run = {"ours": lambda: [consume(stream.epoch(next(epochs))) for _ in range(_EPOCHS)]}
            return time_side_by_side(run, budget_s=0, min_rounds=repeats)["ours"].seconds

        before = ours()
        np.save(folder / "images.npy", images)
        np.save(folder / "labels.npy", labels)
        theirs_s = _litdata_s(python, folder, global_batch_size, repeats)
        ours_s = statistics.median([*before, *ours()]) / _EPOCHS
    return {"litdata_images_per_s": len(images) / theirs_s, "speedup_vs_litdata": theirs_s / ours_s}


def _litdata_s(python: str, folder: Path, global_batch_size: int, repeats: int) -> float:
    script = str(Path(litdata_rate.__file__))
    command = [python, script, str(folder), str(global_batch_size), str(repeats)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    except OSError as error:
        raise RunError(
            f"{python}: cannot be run ({error.strerror}); give a Python that has litdata"
        ) from None
    except subprocess.CalledProcessError as error:
        last = next(iter(error.stderr.splitlines()[-1:]), "it printed nothing")
        raise RunError(f"{python}: LitData failed there ({last}); pip install litdata there") from None
    return float(done.stdout.splitlines()[-1])
