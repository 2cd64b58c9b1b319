"""Scripts of faults: each strikes once, most of them in a worker at its own (rank, step), and leaves a mark.

A script is handed to the workers as the `fault` of a launch. A mark is written before the fault strikes, so
that what is counted is what has happened and not what was planned.

| kind | what happens |
|---|---|
| error | an exception of the training code |
| kill | SIGKILL of the worker, as out of memory or a native crash would |
| tear | SIGKILL while a checkpoint is written: weights are there, state and manifest are not |
| damaged_checkpoint | a bit flips in the newest checkpoint, and in the oldest of three; a `kill` follows |
| shard_overwritten | a shard is overwritten in place and its reader dies; restored before the next start |
| killed_build | SIGKILL of a build of DeepSpeed's operator, before the first start (rank 0, step 0) |
| frozen_worker | SIGSTOP of the worker, for ever |
| host | SIGKILL of the worker's raylet and of all its processes: the machine is gone |
| stop | SIGTERM to the driver; the same run is started again |
| driver | SIGKILL of the driver; the same run is started again by another |
| wait | the worker waits until `Script.go_on` |
| freeze_saving | SIGSTOP of the worker while it saves this step, when all ranks have agreed on it |
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from capsdist.runs.retention import checkpoint_name
from capsdist.train.checkpoint import MANIFEST, MODEL, STATE
from faults.strikes import at_file_event, die, flip_bit, invert, kill_a_build, kill_host

__all__ = ["Fault", "Kind", "Mark", "Script", "read_marks", "send_by_value"]

Kind: TypeAlias = Literal[
    "error", "kill", "tear", "damaged_checkpoint", "shard_overwritten", "killed_build", "frozen_worker",
    "host", "stop", "driver", "wait", "freeze_saving",
]  # fmt: skip
_LONGEST_WAIT_S = 600.0
_GO_ON = "go-on"


class Fault(NamedTuple):
    """`kind` strikes in the worker of `rank` when `step` is done; several may share a place."""

    kind: Kind
    rank: int
    step: int


class Mark(NamedTuple):
    """That a fault has struck: when, in seconds since 1970, on which host and in which process."""

    fault: Fault
    time: float
    host: str
    pid: int


@dataclass(frozen=True)
class Script:
    """The `fault` of a launch: strikes as scripted, each fault once in all attempts.

    marks: folder for the marks, made if it is missing; run: folder of the run; split: the training split, for
    `shard_overwritten`; driver: process that launches.
    """

    faults: Sequence[Fault]
    marks: Path
    run: Path
    split: Path | None = None
    driver: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        self.marks.mkdir(parents=True, exist_ok=True)

    def before_start(self) -> None:
        """Do, in the driver, what comes before a start: put shards right again, kill a build once."""
        for kept in self.marks.glob("*.shard"):
            assert self.split is not None
            (self.split / kept.stem).write_bytes(kept.read_bytes())
            kept.unlink()
        for number, fault in enumerate(self.faults):
            if fault.kind == "killed_build" and self.reached(number) is None:
                self._mark(fault, number)
                kill_a_build()

    def __call__(self, rank: int, step: int) -> None:
        """Strike, if this is the place of a fault that has not struck yet."""
        for number, fault in enumerate(self.faults):
            if (fault.rank, fault.step) == (rank, step) and self.reached(number) is None:
                self._strike(fault, number)

    def reached(self, number: int) -> Mark | None:
        """Return the mark of a fault, None before it strikes."""
        path = self._path(number)
        return _read_mark(path) if path.exists() else None

    def go_on(self) -> None:
        """Let workers that wait go on; a frozen one needs SIGCONT besides."""
        (self.marks / _GO_ON).touch()

    def _strike(self, fault: Fault, number: int) -> None:
        def mark_and_die() -> None:
            self._mark(fault, number)
            die()

        def mark_and_freeze() -> None:
            if self.reached(number) is None:
                self._mark(fault, number)
                os.kill(os.getpid(), signal.SIGSTOP)
                self._wait()

        match fault.kind:  # these strike later, in the middle of a file operation
            case "tear":
                at_file_event({"open", "os.rename"}, STATE, mark_and_die)
                return
            case "freeze_saving":
                at_file_event({"os.rename", "shutil.rmtree"}, checkpoint_name(fault.step), mark_and_freeze)
                return
            case "damaged_checkpoint":
                saved = sorted(path.parent for path in self.run.glob(f"step_*/{MANIFEST}"))
                flip_bit(saved[-1] / MODEL)
                if len(saved) > 2:
                    flip_bit(saved[0] / STATE)
        self._mark(fault, number)
        match fault.kind:
            case "error":
                raise RuntimeError(f"an error of several lines\na scripted error at step {fault.step}")
            case "kill":
                die()
            case "shard_overwritten":
                assert self.split is not None
                shard = min(self.split.glob("shard-*.tar"))
                (self.marks / f"{shard.name}.shard").write_bytes(shard.read_bytes())
                invert(shard)
                die()
            case "frozen_worker":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "host":
                kill_host()
            case "stop":
                os.kill(self.driver, signal.SIGTERM)
                time.sleep(1)  # the signal reaches the driver before the run can end
            case "driver":
                os.kill(self.driver, signal.SIGKILL)
                time.sleep(_LONGEST_WAIT_S)  # Ray ends the workers of a driver that is gone
            case "wait":
                self._wait()

    def _mark(self, fault: Fault, number: int) -> None:
        fresh = self.marks / f"{number:03d}.partial"
        fresh.write_text(json.dumps([*fault, time.time(), socket.gethostname(), os.getpid()]))
        fresh.replace(self._path(number))

    def _wait(self) -> None:
        end = time.monotonic() + _LONGEST_WAIT_S
        while not (self.marks / _GO_ON).exists() and time.monotonic() < end:
            time.sleep(0.01)

    def _path(self, number: int) -> Path:
        return self.marks / f"{number:03d}.json"


def read_marks(folder: Path) -> list[Mark]:
    """Return the marks of all faults that have struck, in the order of the script."""
    return [_read_mark(path) for path in sorted(folder.glob("*.json"))]


def send_by_value() -> None:
    """Have Ray send scripts and recorders with their code: workers need not find this package."""
    import ray.cloudpickle

    import faults

    ray.cloudpickle.register_pickle_by_value(faults)


def _read_mark(path: Path) -> Mark:
    kind, rank, step, moment, host, pid = json.loads(path.read_text())
    return Mark(Fault(kind, rank, step), moment, host, pid)
