"""A run of a second: a tiny network on random images, and what tests ask of its folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from capsdist.config import Cluster, Config, Data, Model, Train
from capsdist.data import write_split
from capsdist.models import build_model
from capsdist.storage import join
from capsdist.train.checkpoint import Checkpoint, EngineState, write_checkpoint
from capsdist.train.cluster.retention import checkpoint_name

ROOT = Path(__file__).resolve().parents[2]
NUM_TRAIN, NUM_TEST, BATCH = 92, 23, 12  # 8 steps an epoch, the last one short
STEPS_PER_EPOCH = 8

TINY_FLAGS = [
    "--model.image-size=12", "--model.conv-channels=4", "--model.conv-kernel=3", "--model.primary-kernel=3",
    "--model.primary-types=2", "--model.primary-dim=4", "--model.class-dim=4",
    "--model.decoder-hidden", "8", "9",
    f"--train.global-batch={BATCH}", "--data.lanes=4", "--data.window=16", "--train.precision=fp32",
    "--data.name=tiny", "--train.log-every-steps=3",
]  # fmt: skip


def write_tiny(
    root: Path | str,
    *,
    name: str = "tiny",
    shape: tuple[int, int, int] = (1, 12, 12),
    num_train: int = NUM_TRAIN,
    num_test: int = NUM_TEST,
) -> None:
    """Write random images as the data set `name`: all 10 classes in turn."""
    rng = np.random.default_rng(num_train)
    for split, num in (("train", num_train), ("test", num_test)):
        images = rng.integers(0, 256, (num, *shape), dtype=np.uint8)
        classes = [f"class {number}" for number in range(10)]
        labels = np.arange(num) % 10
        write_split(join(root, name, split), images, labels, classes=classes, block_size=16, shard_size=48)


def tiny_config(
    root: Path | str,
    storage: Path | str,
    name: str,
    *,
    cluster: Cluster | None = None,
    cores: float = 1,
    **train: object,
) -> Config:
    """The configuration that TINY_FLAGS mean, with fields of `train` set; `cores` of a worker."""
    settings = {
        "name": name, "storage": str(storage), "workers": 2, "device": "cpu", "epochs": 2,
        "global_batch": BATCH, "precision": "fp32", "checkpoint_every_steps": 3, "log_every_steps": 3,
    }  # fmt: skip
    return Config(
        model=Model(
            image_size=12, conv_channels=4, conv_kernel=3, primary_kernel=3, primary_types=2, primary_dim=4,
            class_dim=4, decoder_hidden=(8, 9),
        ),
        data=Data(name="tiny", root=str(root), lanes=4, window=16),
        train=Train.model_validate(settings | train),
        cluster=cluster or Cluster(cpus_per_worker=cores),
    )  # fmt: skip


def run_job_file(job: str, *args: str, cwd: Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run jobs/`job` as a user does, from `cwd`."""
    command = [sys.executable, str(ROOT / "jobs" / job), *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **kwargs)  # type: ignore[call-overload]


def saved_state(run_dir: Path, back: int = 0) -> dict[str, torch.Tensor]:
    """All weights and optimizer state of the newest checkpoint of a run, or of one `back` before it."""
    folder = sorted(run_dir.glob("step_*"))[-1 - back]
    return {
        name: tensor
        for file in ("model.safetensors", "optimizer.safetensors")
        for name, tensor in load_file(folder / file).items()
    }


def assert_same_state(first: Path, second: Path, *, back: int = 0) -> None:
    """The newest checkpoints of two runs (the second's `back` before it) hold the same bits."""
    one, two = saved_state(first), saved_state(second, back)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


NETWORK = Config(
    model=Model(
        image_size=9, num_classes=3, conv_channels=2, conv_kernel=3, primary_types=2, primary_dim=2,
        primary_kernel=3, class_dim=2, decoder_hidden=(3, 3),
    )
)  # fmt: skip


def save_tiny(
    run: Path, step: int, error_percent: float | None = None, validated_step: int | None = None
) -> Path:
    """Write a whole checkpoint of an untrained network, validated at `validated_step`, else `step`."""
    metrics = {}
    if error_percent is not None:
        metrics = {"error_percent": error_percent, "validated_step": float(validated_step or step)}
    weights = build_model(NETWORK.model, NETWORK.routing).state_dict()
    folder = run / checkpoint_name(step)
    write_checkpoint(folder, Checkpoint(EngineState(weights, {}), step, 0, {}, NETWORK, metrics))
    return folder


def damage(checkpoint: Path) -> None:
    """Flip a bit of the weights."""
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


class Rows(list):
    """A display that keeps what it is shown."""

    def __call__(self, row: dict) -> None:
        """Keep a row."""
        self.append(row)

    def of(self, kind: str) -> list[dict]:
        """Return the rows of a kind."""
        return [row for row in self if row["kind"] == kind]


@dataclass(frozen=True)
class Slow:
    """Takes `seconds` more for every step."""

    seconds: float

    def __call__(self, rank: int, step: int) -> None:
        """Wait."""
        time.sleep(self.seconds)


@dataclass(frozen=True)
class HoldUntil:
    """Holds the workers after `step` until `marker` is there."""

    marker: Path
    step: int

    def __call__(self, rank: int, step: int) -> None:
        """Wait."""
        while step == self.step and not self.marker.exists():
            time.sleep(0.05)


@dataclass(frozen=True)
class KillOnce:
    """Kills the worker of `rank` after `step`, the first time that it gets there."""

    marker: Path
    rank: int
    step: int

    def __call__(self, rank: int, step: int) -> None:
        """Die here, if this is the place."""
        if (rank, step) == (self.rank, self.step) and not self.marker.exists():
            self.marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class RaiseAt:
    """Raises `error` in the worker of `rank` after `step`, every time."""

    rank: int
    step: int
    error: Exception

    def __call__(self, rank: int, step: int) -> None:
        """Raise here, if this is the place."""
        if (rank, step) == (self.rank, self.step):
            raise self.error
