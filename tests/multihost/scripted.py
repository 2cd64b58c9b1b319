"""What goes wrong in a worker, at scripted (rank, step), and which host did which step of a run."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["Fault", "Scripted", "Step"]

_LONGEST_S = 120.0


@dataclass(frozen=True)
class Step:
    """A step that a rank has done, on which host and in which of its processes."""

    rank: int
    step: int
    host: str
    pid: int


@dataclass(frozen=True)
class Fault:
    """What happens to a rank after a step, once.

    what: "die": SIGKILL; "wait": until there is a file `go on`; "freeze in saving": SIGSTOP when the
    checkpoint after this step is written, and all ranks have agreed on it, before it gets its name.
    """

    what: Literal["die", "wait", "freeze in saving"]
    rank: int
    step: int


@dataclass(frozen=True)
class Scripted:
    """Called by every rank after every step: writes who did it, and lets the faults happen.

    folder: on shared storage; `steps` in it lists what was done, `reached-N` says who has come to fault N.
    """

    folder: str
    faults: tuple[Fault, ...] = ()

    def __call__(self, rank: int, step: int) -> None:
        """Write, and fail if this is the place."""
        with (Path(self.folder) / "steps").open("a") as file:  # lines this short are never mixed up
            file.write(f"{rank} {step} {socket.gethostname()} {os.getpid()}\n")
        for number, fault in enumerate(self.faults):
            if (rank, step) == (fault.rank, fault.step) and not self.reached(number):
                self._strike(number, fault)

    def _strike(self, number: int, fault: Fault) -> None:
        if fault.what == "freeze in saving":
            sys.addaudithook(lambda event, arguments: self._freeze_at_change(number, event, arguments))
            return
        self._say_reached(number)
        if fault.what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        self._wait()

    def _freeze_at_change(self, number: int, event: str, arguments: tuple[Any, ...]) -> None:
        """Called by Python before it does what `event` names, in the thread that does it."""
        if event not in {"os.rename", "shutil.rmtree"} or self.reached(number):
            return
        checkpoint = f"step_{self.faults[number].step:08d}"
        if any(str(argument).endswith(f"/{checkpoint}") for argument in arguments):
            self._say_reached(number)
            os.kill(os.getpid(), signal.SIGSTOP)
            self._wait()

    def _say_reached(self, number: int) -> None:
        fresh = Path(self.folder) / "reached"
        fresh.write_text(f"{socket.gethostname()} {os.getpid()}")
        os.replace(fresh, fresh.with_name(f"reached-{number}"))

    def _wait(self) -> None:
        deadline = time.monotonic() + _LONGEST_S
        while not (Path(self.folder) / "go on").exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def steps(self) -> list[Step]:
        """Return all steps done so far, repeated ones too, in the order of time."""
        path = Path(self.folder) / "steps"
        lines = path.read_text().splitlines() if path.exists() else []
        words = [line.split() for line in lines]
        return [Step(int(rank), int(step), host, int(pid)) for rank, step, host, pid in words]

    def reached(self, number: int) -> tuple[str, int] | None:
        """Return host and process of the rank that has come to a fault, None before."""
        path = Path(self.folder) / f"reached-{number}"
        words = path.read_text().split() if path.exists() else []
        return (words[0], int(words[1])) if words else None

    def go_on(self) -> None:
        """Let the rank that waits go on; a frozen one needs SIGCONT besides."""
        (Path(self.folder) / "go on").touch()
