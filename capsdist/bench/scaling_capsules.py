"""Train class capsules of ImageNet's size through the job, split over 2 capsule ranks: step, save, restore.

6,272 capsules of 8D to 1,000 of 16D have 803 million weights: with gradients and two moments of Adam 12.8 GB,
which the ranks divide. Images are random; the residual stem under the capsules is that of the preset.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from capsdist.bench.searching import own_environment
from capsdist.console import Log
from capsdist.data.format.shards import write_split
from capsdist.errors import RunError
from capsdist.storage.temporary import temporary_folder
from capsdist.train.metrics import METRICS_NAME, read_metrics

__all__ = ["CAPSULE_OPTIONS", "capsule_figures"]

_IMAGES = 4  # of a step
_NEED_BYTES = 21 * 10**9
_POLL_S = 0.2
CAPSULE_OPTIONS = (
    "--train.num-workers", "2", "--train.capsule-ranks", "2", "--train.device", "cpu",
    "--train.precision", "fp32", "--train.global-batch-size", str(_IMAGES), "--data.lanes", str(_IMAGES),
    "--optim.schedule", "constant", "--optim.average-decay", "0", "--data.train-split", "train",
    "--data.validation-split", "None", "--train.keep-best", "0", "--train.keep-checkpoints", "1",
    "--data.decode-size", "0", "--data.resize", "0", "--data.resize-area", "1", "1",
    "--data.resize-ratio", "1", "1", "--train.log-every-steps", "1",
)  # fmt: skip
"""What differs from the preset `imagenet_resnet_capsnet`."""


def capsule_figures(log: Log, options: tuple[str, ...] = ()) -> dict[str, float]:
    """Run a step with a checkpoint, then a new process that restores it and does another step.

    options: further options of the job, for a smaller network.

    Returns `imagenet_layer_pss_gib`, the largest sum of the workers' proportional set sizes, `_step_s` and
    `_save_s`, of the first step and its checkpoint.

    Raises:
        RunError: the job failed, or did not go on from its checkpoint.
    """
    if not options and psutil.virtual_memory().available < _NEED_BYTES:
        log(f"imagenet_layer_pss_gib: left out, it needs {_NEED_BYTES // 10**9} GB of free memory")
        return {}
    with temporary_folder() as place:
        _write_images(place / "data" / "imagenet")
        peaks = [_train(place, options, steps) for steps in (1, 2)]
        rows = read_metrics(place / "runs" / "imagenet" / METRICS_NAME)
    starts, trained, saved = (
        [row for row in rows if row["kind"] == k] for k in ("start", "train", "checkpoint")
    )
    if [row["resumed_step"] for row in starts] != [0, 1]:
        raise RunError(
            f"the job went on from steps {[row['resumed_step'] for row in starts]}, not from 0 and 1"
        )
    log(f"{starts[0]['num_parameters']:,} parameters, peak bytes of first and second start: {peaks}")
    return {
        "imagenet_layer_pss_gib": max(peaks) / 2**30,
        "imagenet_layer_step_s": trained[0]["step_time_s"],
        "imagenet_layer_save_s": saved[0]["seconds"],
    }


def _write_images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 2 * _IMAGES), ("test", _IMAGES)):
        images = generator.integers(0, 256, (count, 3, 224, 224), dtype=np.uint8)
        classes = [str(number) for number in range(1000)]
        write_split(folder / split, images, generator.integers(0, 1000, count), classes=classes)


def _train(place: Path, options: tuple[str, ...], steps: int) -> int:
    """Train up to `steps` steps; return the peak of the sum of the workers' PSS, in bytes."""
    command = [
        sys.executable, "-m", "capsdist", "train", "imagenet_resnet_capsnet", *CAPSULE_OPTIONS,
        "--data.root", str(place / "data"), "--train.storage", str(place / "runs"),
        "--train.max-steps", str(steps), *options,
    ]  # fmt: skip
    job = subprocess.Popen(
        command,
        cwd=place,
        env=own_environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, sum(map(_pss, _workers(job.pid))))
            time.sleep(_POLL_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        printed, _ = job.communicate()
    finally:
        done.set()
        watcher.join()
    if job.returncode:
        raise RunError(f"the job ended with {job.returncode}: {printed.strip().splitlines()[-1:]}")
    return peak


def _workers(job: int) -> list[psutil.Process]:
    try:
        return [p for p in psutil.Process(job).children(recursive=True) if "RayTrainWorker" in _command(p)]
    except psutil.NoSuchProcess:
        return []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return ""


def _pss(process: psutil.Process) -> int:
    """Return the proportional set size: memory that processes share counts once in their sum."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
