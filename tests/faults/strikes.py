"""How faults strike: processes are killed, files are damaged, file operations are interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path

__all__ = ["at_file_event", "die", "flip_bit", "kill_host"]


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_host() -> None:
    """Kill the raylet that has started this worker, all that it has started, and this process."""
    raylet = os.getppid()
    doomed = [raylet]
    for pid in doomed:  # grows: children of children
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        doomed += [int(child) for task in tasks for child in task.read_text().split()]
    for pid in [pid for pid in doomed if pid != os.getpid()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    die()


def flip_bit(path: Path, place: int = -1) -> None:
    """Flip the lowest bit of the byte at `place` of a file, from its end if negative, in place."""
    with path.open("r+b") as file:
        position = file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def at_file_event(events: Collection[str], name: str, strike: Callable[[], None]) -> None:
    """Have `strike` called just before this process does one of `events` to a file or folder `name`.

    events: names of Python's audit events; of "open" those count that write.
    """

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in events or (event == "open" and "w" not in str(arguments[1])):
            return
        if any(str(argument).endswith(f"/{name}") for argument in arguments):
            strike()

    sys.addaudithook(hook)
