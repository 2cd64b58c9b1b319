"""What a start of a run does to its folder, and what reads it afterwards: in their order, without Ray."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from job_helpers import NETWORK, save_tiny

from capsdist.config import Config
from capsdist.errors import CapsdistError
from capsdist.runs.checkpoints import fetched_checkpoint, newest_verified, opened_checkpoint
from capsdist.runs.files import open_files
from capsdist.runs.record import open_record, read_rows
from capsdist.runs.retention import clean, prune, store_checkpoint
from capsdist.runs.rundir import RunFolder, RunSummary
from capsdist.storage import Folder
from capsdist.train.checkpoint import load_model, read_checkpoint

NUM_SAMPLES = 48 * NETWORK.train.global_batch_size
ERRORS = {8: 30.5, 16: 12.25, 24: 20.75}
"""Validated error of each checkpoint, by step: the best is not the newest."""


def write_run(place: str, local: Path) -> RunSummary:
    """Write a run stopped after 24 steps to `place`, its files made in `local`; return its result."""
    run = RunFolder(place)
    run.create()
    run.begin(NETWORK)
    for step, error in ERRORS.items():
        with run.files.staging(f"step_{step:08d}") as staged:
            save_tiny(local, step, error)
            for path in (local / f"step_{step:08d}").iterdir():
                path.rename(staged / path.name)
            store_checkpoint(run.files, staged, step)
    with open_record(run.files, NETWORK, print) as record:
        record({"kind": "start", "step": 0, "resumed_step": 0})
        for step, error in ERRORS.items():
            record({"kind": "train", "step": step, "epoch": step / 48, "loss": 0.5, "images_per_s": 90.5})
            record({"kind": "validation", "step": step, "loss": 0.25, "error_percent": error})
            record({"kind": "checkpoint", "step": step, "name": f"step_{step:08d}", "seconds": 0.1})
    run.files.write("overview.png", b"a picture")
    summary = RunSummary("run", place, "stopped", 24, 20.75, 90.5, 3.5)
    with run.lock():  # leaves its file, as every start does
        run.write_result(summary)
    return summary


@dataclass(frozen=True, repr=False)
class Truth:
    """What the files of an undamaged run say: weights by step, and its result."""

    weights: dict[int, dict[str, torch.Tensor]]
    result: RunSummary

    def __repr__(self) -> str:
        return "the truth"

    @classmethod
    def of(cls, place: str, result: RunSummary) -> Truth:
        """Read it from the run at `place`."""
        files = open_files(place)
        weights: dict[int, dict[str, torch.Tensor]] = {}
        for step in ERRORS:
            with fetched_checkpoint(files, step) as folder:
                model = read_checkpoint(folder).engine.model
                weights[step] = {name: tensor.clone() for name, tensor in model.items()}
        return cls(weights, result)

    def check(self, folder: Path) -> int:
        """Check that the checkpoint in `folder` is one of the run, to the last bit; return its step."""
        found = read_checkpoint(folder)
        assert found.step in self.weights
        assert found.metrics["error_percent"] == ERRORS[found.step]
        assert found.config == NETWORK
        assert found.engine.model.keys() == self.weights[found.step].keys()
        for name, tensor in found.engine.model.items():
            assert torch.equal(tensor, self.weights[found.step][name]), name
        return found.step


@dataclass
class Start:
    """What a start of a run has found: the step to go on from, the result, and warnings."""

    step: int | None = None
    result: RunSummary | None = None
    warnings: list[str] = field(default_factory=list)


def start(place: str, truth: Truth, config: Config = NETWORK) -> Start:
    """Do what `launch` and a worker do, up to the first checkpoint that is new: after 30 steps.

    Raises:
        CapsdistError: the run stops.
    """
    done = Start()
    run = RunFolder(place, done.warnings.append)
    run.create()
    with run.lock():
        run.check_continues(config, NUM_SAMPLES)
        done.result = run.read_result()
        run.begin(config)
        with newest_verified(run.files, done.warnings.append) as whole:
            if whole is not None:
                done.step = truth.check(whole.folder)
                assert done.step == whole.step
            clean(run.files, whole.step if whole else None)
            _train(run.files, whole.step if whole else 0, done.warnings)
        steps = run.steps_saved()
        assert steps == 30
        run.write_result(RunSummary(run.name, place, "done", steps, 10.0, None, 1.0))
        again = run.read_result()
        assert again is not None
        assert again.steps == steps
    return done


def _train(files: Folder, resumed: int, warnings: list[str]) -> None:
    with open_record(files, NETWORK, warnings.append) as record:
        record({"kind": "start", "step": resumed, "resumed_step": resumed})
        record({"kind": "train", "step": 30, "loss": 0.5, "images_per_s": 90.0})
        with files.staging("step_00000030") as staged:
            save_tiny(staged, 30, 10.0)
            for path in (staged / "step_00000030").iterdir():
                path.rename(staged / path.name)
            (staged / "step_00000030").rmdir()
            record.publish()
            store_checkpoint(files, staged, 30)
    prune(files, warnings.append, keep_last=2, keep_best=1)


def look(place: str, truth: Truth, warnings: list[str]) -> int:
    """Do what `evaluate.py`, with and without --best, and `overview` read; return the step of the best.

    Raises:
        CapsdistError: there is nothing to look at.
    """
    files = open_files(place)
    read_rows(files, warnings.append)
    with opened_checkpoint(place, log=warnings.append) as (_, folder):
        truth.check(folder)
        load_model(folder)
    with newest_verified(files, warnings.append):
        pass
    with opened_checkpoint(place, lowest_error=True, log=warnings.append) as (_, folder):
        return truth.check(folder)


def start_or_stop(place: str, truth: Truth, untouched: list[int]) -> CapsdistError | None:
    """Look at a run and start it; return why it stopped, None if it has gone on as it must.

    untouched: the steps of checkpoints to which nothing has happened: the newest of them, or one after it,
    is gone on from.
    """
    with contextlib.suppress(CapsdistError):
        look(place, truth, [])
    try:
        done = start(place, truth)
    except CapsdistError as error:
        return error
    assert untouched == [] or (done.step is not None and done.step >= max(untouched))
    assert done.result in (None, truth.result)
    assert all(len(line.splitlines()) == 1 for line in done.warnings), done.warnings
    return None
