"""A run of a second: a tiny network on random images, and what tests ask of its folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from capsdist.config import CapsNetConfig, Config
from capsdist.models import build_model
from capsdist.runs.retention import checkpoint_name
from capsdist.train.checkpoint import Checkpoint, EngineState, write_checkpoint
from capsdist.train.manifest import FORMAT, MANIFEST, MODEL, OPTIMIZER, STATE, Manifest, digest_of
from faults.lineage import differing_tensors
from faults.tiny import BATCH, NUM_TEST, STEPS_PER_EPOCH, tiny_config, write_tiny

__all__ = [
    "NETWORK", "NUM_TEST", "ROOT", "STEPS_PER_EPOCH", "TINY_FLAGS", "FrozenAtStart", "Rows", "Slow",
    "assert_same_state", "reseal", "run_job_file", "save_tiny", "tiny_config", "write_tiny",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
TINY_FLAGS = [
    "--model.image-size=12", "--model.conv-channels=4", "--model.conv-kernel=3", "--model.primary-kernel=3",
    "--model.primary-types=2", "--model.primary-dim=4", "--model.class-dim=4",
    "--model.decoder-hidden", "8", "9",
    f"--train.global-batch-size={BATCH}", "--data.lanes=4", "--data.window=16", "--train.precision=fp32",
    "--data.name=tiny", "--train.log-every-steps=3", "--optim.epsilon-placement=pytorch",
    "--data.train-split=train", "--data.validation-split=test",
]  # fmt: skip


def run_job_file(job: str, *args: str, cwd: Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run jobs/`job` as a user does, from `cwd`."""
    command = [sys.executable, str(ROOT / "jobs" / job), *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **kwargs)  # type: ignore[call-overload]


def assert_same_state(first: Path, second: Path, *, back: int = 0) -> None:
    """The newest checkpoints of two runs (the second's `back` before it) hold the same bits."""
    checkpoints = sorted(first.glob("step_*"))[-1], sorted(second.glob("step_*"))[-1 - back]
    assert differing_tensors(*checkpoints) == []


NETWORK = Config(
    model=CapsNetConfig(
        image_size=9, num_classes=3, conv_channels=2, conv_kernel=3, primary_types=2, primary_dim=2,
        primary_kernel=3, class_dim=2, decoder_hidden=(3, 3),
    )
)  # fmt: skip


def save_tiny(
    run: Path,
    step: int,
    error_percent: float | None = None,
    validated_step: int | None = None,
    config: Config = NETWORK,
    classes: tuple[str, ...] | None = None,
) -> Path:
    """Write a verified checkpoint of an untrained network, validated at `validated_step`, else `step`.

    config: what it says that the run was; its network is always that of NETWORK. classes: None
    as of version 0.1.
    """
    metrics = {}
    if error_percent is not None:
        metrics = {"error_percent": error_percent, "validated_step": float(validated_step or step)}
    weights = build_model(config.model, config.routing).state_dict()
    folder = run / checkpoint_name(step)
    write_checkpoint(
        folder, Checkpoint(EngineState(weights, {}), step, 0, {}, config, metrics, classes=classes)
    )
    return folder


def reseal(checkpoint: Path) -> None:
    """Make the manifest fit the files again, as somebody would who has changed them on purpose."""
    files = {name: digest_of((checkpoint / name).read_bytes()) for name in (MODEL, OPTIMIZER, STATE)}
    manifest = Manifest(format=FORMAT, files=files)
    (checkpoint / MANIFEST).write_text(manifest.model_dump_json())


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
class FrozenAtStart:
    """A fault that stops, for ever, the first process that gets it and opens the file `path`, as a dead mount
    would; `mark`: a file that then holds its process id.
    """

    path: Path
    mark: Path

    def __setstate__(self, state: dict[str, Path]) -> None:
        """Do so from now on: unpickled in a worker, long before its first step."""
        self.__dict__.update(state)
        sys.addaudithook(self._look)

    def __call__(self, rank: int, step: int) -> None:
        """Do nothing after a step."""

    def _look(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]) == str(self.path) and not self.mark.exists():
            self.mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
