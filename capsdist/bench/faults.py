"""Faults on purpose: which, where, in an order that a seed decides, and how a worker strikes.

Ours. A script is handed to the workers; each strikes at its own (rank, step), once, and leaves a mark with
the moment before it does, so that what is counted is what has happened and not what was planned.

| kind | what happens |
|---|---|
| error | an exception of the training code |
| kill | SIGKILL of the worker, as out of memory or a native crash would |
| tear | SIGKILL in the middle of writing a checkpoint: weights are there, state and manifest are not |
| damage | a bit of the newest checkpoint flips while its worker dies: it comes with a `kill` |
| host | SIGKILL of the worker's raylet and of all its processes: the machine is gone; not drawn at random |
| stop | SIGTERM to the driver; the same run is started again |
| driver | SIGKILL of the driver; the same run is started again by another |
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from capsdist.train.checkpoint import MANIFEST, MODEL, STATE

__all__ = ["SAMPLE", "SLOTS", "Fault", "Kind", "Mark", "Script", "random_faults", "read_marks"]

Kind: TypeAlias = Literal["error", "kill", "tear", "damage", "host", "stop", "driver"]
_DRAWN: tuple[Kind, ...] = ("error", "kill", "tear", "damage", "stop", "driver")


class Fault(NamedTuple):
    """`kind` strikes in the worker of `rank` when `step` is done; several may share a place."""

    kind: Kind
    rank: int
    step: int


class Mark(NamedTuple):
    """That a fault has struck, and when, in seconds since 1970."""

    fault: Fault
    time: float


# Three deaths of workers and five faults: what a minute on two cores can hold.
SAMPLE = (
    Fault("error", 1, 13),
    Fault("tear", 0, 25),
    Fault("damage", 0, 38),
    Fault("kill", 0, 38),
    Fault("kill", 1, 38),
)

SLOTS = 6
"""Faults that a run of `tiny.EPOCHS` epochs has room for."""
_FIRST, _GAP = 12, 9  # steps: two checkpoints are there, and another one in every attempt


def random_faults(seed: int, num: int, *, ranks: int, checkpoint_every: int) -> list[tuple[Fault, ...]]:
    """Return `num` faults as scripts of runs, each with at most `SLOTS`; equal seeds give equal scripts.

    All kinds take part in turn, in an order that the seed shuffles.
    """
    draw = random.Random(seed)
    scripts: list[tuple[Fault, ...]] = []
    kinds: list[Kind] = []
    while (left := num - sum(map(len, scripts))) > 0:
        script: list[Fault] = []
        for slot in range(SLOTS):
            if len(script) == min(left, SLOTS):
                break
            kinds = kinds or draw.sample(_DRAWN, k=len(_DRAWN))
            kind = kinds.pop()
            step = _FIRST + slot * _GAP + draw.randrange(4)
            rank = draw.randrange(ranks) if kind in ("error", "kill", "damage") else 0
            if kind == "tear":
                step += -step % checkpoint_every
            if kind == "damage":
                step += step % checkpoint_every == 0  # no checkpoint is being written then
                if len(script) + 2 > min(left, SLOTS):  # no room for the death that belongs to it
                    continue
                script.append(Fault("damage", rank, step))
                kind = "kill"
            script.append(Fault(kind, rank, step))
        scripts.append(tuple(script))
    return scripts


@dataclass(frozen=True)
class Script:
    """The `fault` of a launch: strikes as scripted, each fault once in all attempts.

    marks: folder for the marks; run: folder of the run; driver: process that launches it.
    """

    faults: Sequence[Fault]
    marks: Path
    run: Path
    driver: int

    def __call__(self, rank: int, step: int) -> None:
        """Strike, if this is the place of a fault that has not struck yet."""
        for number, fault in enumerate(self.faults):
            if (fault.rank, fault.step) == (rank, step) and not self._path(number).exists():
                self._strike(fault, number)

    def _strike(self, fault: Fault, number: int) -> None:
        def mark() -> None:
            self._path(number).write_text(json.dumps([*fault, time.time()]))

        match fault.kind:
            case "tear":
                _at_opening(STATE, mark)
                return
            case "damage":
                _flip_a_bit(self.run)
        mark()
        match fault.kind:
            case "error":
                raise RuntimeError(f"a scripted error at step {fault.step}")
            case "kill":
                _die()
            case "host":
                _kill_host()
            case "stop":
                os.kill(self.driver, signal.SIGTERM)
                time.sleep(1)  # the wish to stop is on its way
            case "driver":
                os.kill(self.driver, signal.SIGKILL)
                time.sleep(60)  # Ray ends the workers of a driver that is gone

    def _path(self, number: int) -> Path:
        return self.marks / f"{number:03d}.json"


def read_marks(folder: Path) -> list[Mark]:
    """Return the marks of all faults that have struck, in the order of the script."""
    texts = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [Mark(Fault(kind, rank, step), moment) for kind, rank, step, moment in texts]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_opening(name: str, mark: Callable[[], None]) -> None:
    """Have this process killed when it opens the file `name` for writing: Python tells of it beforehand."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(f"/{name}") and "w" in str(arguments[1]):
            mark()
            _die()

    sys.addaudithook(hook)


def _flip_a_bit(run: Path) -> None:
    """Damage the weights of the newest finished checkpoint."""
    newest = max(path.parent for path in run.glob(f"step_*/{MANIFEST}"))
    with (newest / MODEL).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read()[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def _kill_host() -> None:
    """Kill the raylet that has started this worker, all that it has started, and this process."""
    raylet = os.getppid()
    doomed = [raylet]
    for pid in doomed:  # grows: children of children
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        doomed += [int(child) for task in tasks for child in task.read_text().split()]
    for pid in [pid for pid in doomed if pid != os.getpid()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _die()
