"""The folder of a run: configuration, result and lock, and what may change when a run is started again.

The files themselves, on a disk or in object storage, are the subject of `capsdist.storage`, the checkpoints
among them of `retention.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import NonNegativeFloat, NonNegativeInt, ValidationError

from capsdist.config import Config
from capsdist.config.earlier import as_begun
from capsdist.config.optim_rules import schedule_steps
from capsdist.config.sections import Change, Section
from capsdist.config.steps import total_steps
from capsdist.console import Log
from capsdist.errors import CheckpointError, ConfigError, DocumentError, Problem
from capsdist.runs.files import create, open_files, read_document
from capsdist.runs.locks import Lock, run_lock
from capsdist.runs.retention import checkpoint_name, newest_state
from capsdist.storage.documents import dump_json, parse_document, parse_json, printable, seal
from capsdist.storage.place import join
from capsdist.train.manifest import State

__all__ = [
    "CONFIG", "FAILURE_LOG", "INTERACTIVE", "OVERVIEW", "REPORT", "STACKS", "RunFolder", "RunSummary",
    "Status", "changed_fields", "parse_config", "run_place",
]  # fmt: skip

OVERVIEW = "overview.png"
"""The figure of a run that is done."""
REPORT = "report.html"
INTERACTIVE = "interactive.html"
"""The pages about a run, see `capsdist.analysis.report`."""
FAILURE_LOG = "failure.txt"
"""All tracebacks of a failure."""
STACKS = "stacks.txt"
"""The stacks of all workers when no step had been done for too long."""
CONFIG, _RESULT = "config.json", "result.json"
_FOLLOWS = "default_factory_not_called"  # of a section whose type a faulty `model` would have decided
_RAYS_RECORD = "checkpoint_manager_snapshot.json"

Status: TypeAlias = Literal["done", "stopped", "failed"]


@dataclass(frozen=True)
class RunSummary:
    """What became of a run. "stopped": by a signal; that and "failed" may be continued.

    steps: done and saved; error_percent: of the test at the end, of a stopped run that validates on the test
    split the last one; error_interval_percent: ends of its 95 % interval by Wilson, None in results of
    version 0.1; wall_s: seconds of this start, that of Ray included; reason: why it failed.
    """

    name: str
    run_dir: str
    status: Status
    steps: NonNegativeInt
    error_percent: NonNegativeFloat | None
    images_per_s: NonNegativeFloat | None
    wall_s: float
    reason: str | None = None
    error_interval_percent: list[NonNegativeFloat] | None = None


def run_place(config: Config) -> str:
    """Return where the run lies: its storage, continued by its name; options of a URL stay at its end."""
    return join(config.train.storage, config.train.name)


class RunFolder:
    """The folder of one run: a local path or an s3:// URL; nothing is created before `create`.

    files: what is in it, for those who need more than the methods here. `log` is told of each file that is
    damaged and passed over.
    """

    def __init__(self, place: str | os.PathLike[str], log: Log = lambda text: None) -> None:
        self.files = open_files(place, log)
        self.name = self.files.name
        self._told: set[str] = set()
        self._log = log

    def __str__(self) -> str:
        return str(self.files)

    @property
    def path(self) -> Path:
        """The folder of a run that lies in one."""
        assert self.files.local is not None, self
        return self.files.local

    def _log_once(self, text: str) -> None:
        """Log of a damaged file once, however often it is read."""
        if text not in self._told:
            self._told.add(text)
            self._log(text)

    def create(self) -> None:
        """Make the folder and prove that it can be written, in under 10 seconds.

        Raises:
            RunError: it cannot; one line, with the remedy.
        """
        create(self.files)

    def lock(self, log: Log = lambda text: None) -> AbstractContextManager[Lock]:
        """Hold the run for this process, so that it is not started twice at a time; `log` hears of a wait.

        Raises:
            RunError: another process trains it.
        """
        return run_lock(self.files, log)

    def read_config(self) -> Config | None:
        """Return the configuration that decides what the run computes, None for a new run.

        It is that of the newest checkpoint, whose digest protects it, else that of config.json: of the last
        start. A damaged config.json is passed over; the next start writes it anew.

        Raises:
            CheckpointError: it has fields that this version does not know.
        """
        stored: Config | None = None
        damage = ""
        try:
            stored = read_document(self.files, CONFIG, _parse_stored)
        except DocumentError as error:
            damage = str(error)
        if (state := newest_state(self.files)) is not None:
            stored = self._config_of(state)
        if damage:
            instead = f"took that of {checkpoint_name(state.step)}" if state else "the run has no checkpoint"
            self._log_once(f"warning: passed over a configuration: {damage}; {instead}")
        return stored

    def _config_of(self, state: State) -> Config:
        try:
            return _parse_stored(dump_json(state.config))
        except DocumentError as error:
            raise CheckpointError(
                f"{self.files.path(checkpoint_name(state.step))}: its configuration does not fit this "
                f"version: {error}; use the version that wrote it, or choose another --train.name"
            ) from None

    def begin(self, config: Config) -> None:
        """Write `config` as the configuration of the run; take away what tells of its earlier starts.

        Ray's record too: Ray refuses to start where that names checkpoints that are gone.
        """
        self.files.write(CONFIG, dump_json(config.model_dump(mode="json")))
        for name in (_RESULT, FAILURE_LOG, STACKS, _RAYS_RECORD):
            self.files.delete(name)

    def read_result(self) -> RunSummary | None:
        """Return what became of the run when it was started last; None if it is new, runs, or was killed.

        A result that is damaged, or that the checkpoint of its last step contradicts, is passed over. Only
        one of version 0.1, whose checkpoints name no classes, may lack a checksum.
        """
        state: State | None = None

        def parse(content: bytes) -> RunSummary:
            nonlocal state
            state = newest_state(self.files)  # not looked for where there is no result
            return parse_document(content, RunSummary, sealed=state is None or state.classes is not None)

        try:
            result = read_document(self.files, _RESULT, parse)
        except DocumentError as error:
            self._log_once(f"warning: passed over a result: {error}")
            return None
        if result is None or result.error_percent is None or state is None:
            return result
        measured = state.test_error_percent
        if state.step != result.steps or measured is None or measured == result.error_percent:
            return result
        self._log_once(
            f"warning: passed over a result: {self.files.path(_RESULT)} says error_percent "
            f"{result.error_percent:g}, {checkpoint_name(state.step)} says {measured:g}"
        )
        return None

    def write_result(self, summary: RunSummary) -> None:
        """Write `summary` as the result of this start of the run."""
        self.files.write(_RESULT, dump_json(seal(asdict(summary))))

    def steps_saved(self) -> int:
        """Return the step of the newest checkpoint with a whole manifest and state, 0 without one."""
        state = newest_state(self.files)
        return state.step if state else 0

    def as_begun(self, config: Config) -> tuple[Config, str | None]:
        """Return what continues the run where its preset has changed since, and a note; see `as_begun`.

        It is `config` for a run without a finished checkpoint, which begins anew.

        Raises:
            CheckpointError: as `read_config`.
        """
        stored = self.read_config()
        return as_begun(config, stored) if stored and self.steps_saved() else (config, None)

    def conflict(self, config: Config) -> Problem | None:
        """Return why `config` may not continue what the folder holds.

        None if it may, and for a run without a finished checkpoint: that one begins anew.

        Raises:
            CheckpointError: as `read_config`.
        """
        stored = self.read_config()
        if stored is None or not self.steps_saved() or not (changed := changed_fields(stored, config)):
            return None
        text = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in changed.items())
        rule = f"this run has another configuration: {text}"
        return Problem("train.name", self.name, rule, "set these back, or choose another --train.name")

    def check_continues(self, config: Config, num_samples: int) -> None:
        """Check that `config` may continue what the folder holds; a new run always may.

        Raises:
            ConfigError: fields differ that decide the result, the end lies before the newest checkpoint, or
                the schedule of the learning rate would end at another step.
            CheckpointError: as `read_config`.
        """
        if problem := self.conflict(config):
            raise ConfigError([problem])
        total, saved = total_steps(config, num_samples), self.steps_saved()
        if total < saved:
            field = "train.epochs" if config.train.max_steps is None else "train.max_steps"
            value = config.train.epochs if config.train.max_steps is None else config.train.max_steps
            rule = f"ends after step {total}, but run {self.name!r} has already done {saved} steps"
            raise ConfigError([Problem(field, value, rule, "raise it, or choose another --train.name")])
        if saved and (stored := self.read_config()):
            begun, now = (schedule_steps(each, num_samples) for each in (stored, config))
            if begun != now:
                rule = (
                    f"ends the schedule of {self.name!r} at step {now}, it began with its end at step {begun}"
                )
                fix = f"set --optim.schedule-steps {begun}, or choose another --train.name"
                raise ConfigError([Problem("optim.schedule_steps", config.optim.schedule_steps, rule, fix)])


def changed_fields(old: Config, new: Config) -> dict[str, tuple[object, object]]:
    """Return the fields that decide the result and differ, by dotted name, with both values.

    Fields that may change are marked in the schema: `capsdist.config.sections.MAY_CHANGE`.
    """
    return dict(_changed(old, new))


def _changed(old: Section, new: Section, prefix: str = "") -> Iterator[tuple[str, tuple[object, object]]]:
    fields = {**type(old).model_fields, **type(new).model_fields}
    for name, field in fields.items():
        if any(isinstance(mark, Change) for mark in field.metadata):
            continue
        before, after = getattr(old, name, None), getattr(new, name, None)
        if isinstance(before, Section) and isinstance(after, Section):
            yield from _changed(before, after, f"{prefix}{name}.")
        elif before != after:
            yield prefix + name, (before, after)


def parse_config(content: bytes) -> Config:
    """Return the configuration that `content`, a config.json, holds.

    Raises:
        DocumentError: it is not JSON.
        ConfigError: with every fault: an unknown or missing field, a value of another type.
    """
    parse_json(content)
    try:
        return Config.model_validate_json(content, strict=True)
    except ValidationError as error:
        found = [fault for fault in error.errors(include_url=False) if fault["type"] != _FOLLOWS]
        faults = [_problem(fault) for fault in found]
    raise ConfigError(faults)


def _parse_stored(content: bytes) -> Config:
    return parse_document(content, Config)


def _problem(fault: Mapping[str, object]) -> Problem:
    location, value = fault["loc"], fault["input"]
    field = printable(".".join(map(str, location))) if isinstance(location, tuple) and location else "config"
    if fault["type"] == "extra_forbidden":
        return Problem(field, value, "is not a field of this version", "remove it")
    return Problem(field, value, str(fault["msg"]).lower(), "correct the file")
