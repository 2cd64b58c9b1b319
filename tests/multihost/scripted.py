"""What goes wrong in a worker, at a scripted (rank, step), and which host did which step of a run."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["Scripted", "Step"]

_LONGEST_S = 120.0


@dataclass(frozen=True)
class Step:
    """A step that a rank has done, on which host and in which of its processes."""

    rank: int
    step: int
    host: str
    pid: int


@dataclass(frozen=True)
class Scripted:
    """Called by every rank after every step: writes who did it, and at one (rank, step) does `what`, once.

    folder: on shared storage; `steps` in it lists what was done, `reached` says who has come to the place.
    what: "nothing"; "die": SIGKILL; "wait" until there is a file `go on`; "freeze in saving": SIGSTOP when
    the checkpoint after this step is written, and all ranks have agreed on it, but not yet renamed.
    """

    folder: str
    what: Literal["nothing", "die", "wait", "freeze in saving"] = "nothing"
    rank: int = 0
    step: int = 0

    def __call__(self, rank: int, step: int) -> None:
        """Write, and fail if this is the place."""
        with (Path(self.folder) / "steps").open("a") as file:  # lines this short are never mixed up
            file.write(f"{rank} {step} {socket.gethostname()} {os.getpid()}\n")
        if (rank, step) != (self.rank, self.step) or self.what == "nothing" or self.reached():
            return
        if self.what == "freeze in saving":
            sys.addaudithook(self._freeze_at_rename)
            return
        self._say_reached()
        if self.what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        self._wait()

    def _freeze_at_rename(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called by Python before it does what `event` names, in the thread that does it."""
        if event == "os.rename" and ".partial-" in str(arguments[0]) and not self.reached():
            self._say_reached()
            os.kill(os.getpid(), signal.SIGSTOP)
            self._wait()

    def _say_reached(self) -> None:
        partial = Path(self.folder) / "reached.partial"
        partial.write_text(f"{socket.gethostname()} {os.getpid()}")
        os.replace(partial, Path(self.folder) / "reached")

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

    def reached(self) -> tuple[str, int] | None:
        """Return host and process of the rank that has come to the scripted place, None before."""
        path = Path(self.folder) / "reached"
        words = path.read_text().split() if path.exists() else []
        return (words[0], int(words[1])) if words else None

    def go_on(self) -> None:
        """Let the rank that waits go on; a frozen one needs SIGCONT besides."""
        (Path(self.folder) / "go on").touch()
