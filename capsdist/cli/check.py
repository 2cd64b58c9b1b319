"""`--check`: what is wrong with a configuration, and what its run would lack; nothing starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from capsdist.cli.further import missing_further
from capsdist.config import Config
from capsdist.console import DONE, INVALID
from capsdist.errors import CapsdistError, ConfigError, Problem, RunError
from capsdist.launch.glance import data_problems, machine_problems
from capsdist.launch.preflight import absolute, all_problems, check_network, missing_data
from capsdist.runs.initial import initial_state
from capsdist.runs.rundir import RunFolder, run_place
from capsdist.storage.place import is_url

__all__ = ["check_config"]

_DECIDE_PLACES = {"train.num_workers", "train.device", "launch.cpus_per_worker", "launch.max_workers"}


def check_config(config: Config, also: Sequence[Problem] = ()) -> int:
    """Print every problem, and as warnings what the run would still lack; return the exit status.

    `also`: problems of a job's own options.
    """
    found, warnings = [*all_problems(config), *also], []
    if not {"data.root", "train.storage"} & {problem.field for problem in found}:
        other, warnings = _look(absolute(config), {problem.field for problem in found})
        found += other
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if found:
        return INVALID
    looked = "the index of the data on S3, " if is_url(config.data.root) else ""
    cluster = "" if os.environ.get("RAY_ADDRESS", "local") == "local" else ", what the cluster has"
    print(
        f"configuration is valid: preset {config.preset}, run {config.train.name!r}; not looked at before it "
        f"starts: {looked}images and labels, the content of checkpoints{cluster}"
    )
    return DONE


def _look(config: Config, faulty: AbstractSet[str]) -> tuple[list[Problem], list[str]]:
    """Look at data, run and machine: return why the run may not go on as `config`, and what it would lack.

    `faulty`: fields whose own values are wrong, so that nothing can be compared with them.
    """
    found: list[Problem] = []
    warnings: list[str] = []
    run = RunFolder(run_place(config), lambda text: warnings.append(text.removeprefix("warning: ")))
    if missing := missing_data(config):
        warnings.append(missing)
    warnings += missing_further(config)
    if not any(field.startswith("data.") for field in faulty):
        found += [problem for problem in data_problems(config) if problem.field not in faulty]
    if not faulty:
        try:
            check_network(config, config.train.num_workers)
        except ConfigError as error:
            found += error.problems
    machine = [] if _DECIDE_PLACES & faulty else machine_problems(config)
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        found += machine or []
    else:
        warnings += [f"{problem} (for a run on this machine alone)" for problem in machine or []]
    if machine is None:
        warnings.append("train.device: the GPUs of this machine are counted only when a run starts")
    if unusable := _unusable(run, config.train.storage):
        warnings.append(unusable)
    else:
        begun, note = run.as_begun(config)
        if note:
            warnings.append(f"run {run.name} {note}")
        if problem := run.conflict(begun):
            found.append(problem)
        if not run.steps_saved():
            try:
                initial_state(config, warnings.append)
            except ConfigError as error:
                found += error.problems
            except CapsdistError as error:  # the storage cannot be read now
                warnings.append(str(error))
    return found, warnings


def _unusable(run: RunFolder, storage: str) -> str | None:
    """Return in one line why the run cannot be written, None if it can; nothing is left behind."""
    if run.files.local is None:
        try:
            run.create()
        except RunError as error:
            return str(error)
        return None
    place = next(folder for folder in (run.path, *run.path.parents) if folder.exists())
    if place.is_dir() and os.access(place, os.W_OK):
        return None
    return f"train.storage={storage!r}: {place} is not a writable folder"
