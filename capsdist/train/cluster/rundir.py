"""The folder of a run: configuration, result and lock, and what may change when a run is started again.

Ours. Ray keeps checkpoints and its own snapshot in the same folder; this module touches neither.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import ValidationError

from capsdist.config import Config
from capsdist.errors import CheckpointError, ConfigError, Problem, RunError

__all__ = [
    "FREE_FIELDS", "RunFolder", "RunSummary", "Status", "changed_fields", "parse_config", "total_steps",
]  # fmt: skip

Status: TypeAlias = Literal["done", "stopped", "failed"]

# Where and how fast a run computes, and what it reports: a run may change these when it is started again.
# Everything else decides the result. `train.epochs` and `train.max_steps` may move the end of the run.
FREE_FIELDS = frozenset(
    {
        "preset",
        "cluster",
        "data.root",
        "routing.form",
        "routing.recompute",
        "train.accumulation",
        "train.checkpoint_every_steps",
        "train.device",
        "train.engine",
        "train.keep_checkpoints",
        "train.log_every_steps",
        "train.storage",
        "train.validate_every_steps",
        "train.workers",
        "train.zero_stage",
    }
)
_END_FIELDS = frozenset({"train.epochs", "train.max_steps"})


@dataclass(frozen=True)
class RunSummary:
    """What became of a run. "stopped": by a signal; that and "failed" may be continued.

    steps: done and saved; error_percent: of the last validation; reason: why it failed.
    """

    name: str
    run_dir: str
    status: Status
    steps: int
    error_percent: float | None
    images_per_s: float | None
    wall_s: float
    reason: str | None = None


class RunFolder:
    """The folder `path` of one run; nothing is created before `create`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def create(self) -> None:
        """Make the folder and prove that it can be written.

        Raises:
            RunError: it cannot.
        """
        probe = self.path / f".probe-{os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunError(
                f"train.storage={str(self.path.parent)!r}: cannot write {self.path} ({reason}); "
                "choose a writable folder with --train.storage"
            ) from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process, so that it is not started twice at a time.

        Raises:
            RunError: another process trains it.
        """
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read() or "another process"
                raise RunError(
                    f"train.name={self.name!r}: this run is being trained by {holder}; "
                    "wait for it or choose another --train.name"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def read_config(self) -> Config | None:
        """Return the configuration that the run was last started with, None for a new run.

        Raises:
            CheckpointError: the file is damaged or holds fields that this version does not know.
        """
        path = self.path / "config.json"
        if not path.exists():
            return None
        try:
            return parse_config(path.read_text())
        except ConfigError as error:
            faults = "; ".join(f"{p.field}={p.value!r}: {p.rule}" for p in error.problems)
            raise CheckpointError(
                f"{path}: {faults}; use the version that wrote it, or choose another --train.name"
            ) from None

    def begin(self, config: Config) -> None:
        """Write `config` as the configuration of the run, and take an earlier result away."""
        _replace(self.path / "config.json", config.model_dump_json(indent=1) + "\n")
        (self.path / "result.json").unlink(missing_ok=True)

    def read_result(self) -> RunSummary | None:
        """Return what became of the run when it was started last; None if it is new, runs, or was killed."""
        path = self.path / "result.json"
        return RunSummary(**json.loads(path.read_text())) if path.exists() else None

    def write_result(self, summary: RunSummary) -> None:
        """Write `summary` as the result of this start of the run."""
        _replace(self.path / "result.json", json.dumps(asdict(summary), indent=1) + "\n")

    def newest_checkpoint(self) -> Path | None:
        """Return the folder of the newest checkpoint, None without one."""
        return max(self.path.glob("step_" + "[0-9]" * 8), default=None)

    def steps_saved(self) -> int:
        """Return the step of the newest checkpoint, 0 without one."""
        newest = self.newest_checkpoint()
        return int(newest.name.removeprefix("step_")) if newest else 0

    def check_continues(self, config: Config, num_samples: int) -> None:
        """Check that `config` may continue what the folder holds; a new run always may.

        Raises:
            ConfigError: fields differ that decide the result, or the end lies before the newest checkpoint.
            CheckpointError: as `read_config`.
        """
        stored = self.read_config()
        if stored is None:
            return
        if changed := changed_fields(stored, config):
            text = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in changed.items())
            rule = f"this run has another configuration: {text}"
            fix = "set these back, or choose another --train.name"
            raise ConfigError([Problem("train.name", self.name, rule, fix)])
        total, saved = total_steps(config, num_samples), self.steps_saved()
        if total < saved:
            field = "train.epochs" if config.train.max_steps is None else "train.max_steps"
            value = config.train.epochs if config.train.max_steps is None else config.train.max_steps
            rule = f"ends after step {total}, but run {self.name!r} has already done {saved} steps"
            raise ConfigError([Problem(field, value, rule, "raise it, or choose another --train.name")])


def total_steps(config: Config, num_samples: int) -> int:
    """Return the step after which a run with `num_samples` training images ends."""
    steps = config.train.epochs * -(-num_samples // config.train.global_batch)
    return steps if config.train.max_steps is None else min(steps, config.train.max_steps)


def changed_fields(old: Config, new: Config) -> dict[str, tuple[object, object]]:
    """Return the fields that decide the result and differ, by dotted name, with both values."""
    before, after = _flat(old.model_dump()), _flat(new.model_dump())
    return {
        name: (before[name], after[name])
        for name in before
        if before[name] != after[name] and not _may_change(name)
    }


def parse_config(text: str) -> Config:
    """Return the configuration that `text`, a config.json, holds.

    Raises:
        ConfigError: with every fault: not JSON, an unknown or missing field, a value of another type.
    """
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        faults = [_problem(fault) for fault in error.errors(include_url=False)]
    raise ConfigError(faults)


def _problem(fault: Mapping[str, object]) -> Problem:
    location, value = fault["loc"], fault["input"]
    field = ".".join(map(str, location)) if isinstance(location, tuple) and location else "config"
    if fault["type"] == "extra_forbidden":
        return Problem(field, value, "is not a field of this version", "remove it")
    return Problem(field, value, str(fault["msg"]).lower(), "correct the file")


def _may_change(name: str) -> bool:
    return name in FREE_FIELDS or name.partition(".")[0] in FREE_FIELDS or name in _END_FIELDS


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _replace(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the whole new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)
