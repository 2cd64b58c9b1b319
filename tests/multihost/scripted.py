"""What goes wrong in a worker, at a scripted (rank, step), and which host did which step of a run."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Scripted", "Step"]

_LONGEST_S = 60.0


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

    folder: on shared storage; `steps` in it lists what was done, `reached` appears when the place is reached.
    what: "nothing"; "die": SIGKILL; "wait": until there is a file `go on`; "wait in saving": the same, but
    frozen while the files of the checkpoint after this step are written.
    """

    folder: str
    what: Literal["nothing", "die", "wait", "wait in saving"] = "nothing"
    rank: int = 0
    step: int = 0

    def __call__(self, rank: int, step: int) -> None:
        """Write, and fail if this is the place."""
        with (Path(self.folder) / "steps").open("a") as file:  # lines this short are never mixed up
            file.write(f"{rank} {step} {socket.gethostname()} {os.getpid()}\n")
        if (rank, step) != (self.rank, self.step) or self.what == "nothing" or self._reached.exists():
            return
        if self.what == "wait in saving":
            threading.Thread(target=self._freeze_in_saving, daemon=True).start()
            return
        self._reached.write_text(f"{socket.gethostname()} {os.getpid()}")
        if self.what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        self._wait()

    @property
    def _reached(self) -> Path:
        return Path(self.folder) / "reached"

    def _wait(self) -> None:
        deadline = time.monotonic() + _LONGEST_S
        while not (Path(self.folder) / "go on").exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _freeze_in_saving(self) -> None:
        """Stop the whole process once the hidden folder of a checkpoint is there; the test lets it go on."""
        run = Path(self.folder) / "run"
        while not list(run.glob(".partial-*")):
            time.sleep(0.0005)
        self._reached.write_text(f"{socket.gethostname()} {os.getpid()}")
        os.kill(os.getpid(), signal.SIGSTOP)

    def steps(self) -> list[Step]:
        """Return all steps done so far, repeated ones too, in the order of time."""
        path = Path(self.folder) / "steps"
        lines = path.read_text().splitlines() if path.exists() else []
        words = [line.split() for line in lines]
        return [Step(int(rank), int(step), host, int(pid)) for rank, step, host, pid in words]

    def wait_until_reached(self, timeout_s: float = 90) -> tuple[str, int]:
        """Wait for the scripted place; return host and process of the rank that is there."""
        deadline = time.monotonic() + timeout_s
        while not (self._reached.exists() and (words := self._reached.read_text().split())):
            assert time.monotonic() < deadline, f"rank {self.rank} did not come to step {self.step}"
            time.sleep(0.05)
        return words[0], int(words[1])

    def go_on(self) -> None:
        """Let the rank that waits go on."""
        (Path(self.folder) / "go on").touch()
