"""How faults strike: processes are killed, files are damaged, file operations are interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

__all__ = ["at_file_event", "die", "flip_bit", "invert", "kill_a_build", "kill_host", "kill_when_it_builds"]


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


def invert(path: Path) -> None:
    """Overwrite a file in place, its size kept: every bit flips."""
    with path.open("r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(bytes(byte ^ 0xFF for byte in content))


def kill_a_build() -> None:
    """Begin to build DeepSpeed's CPU operator as DeepSpeed does by itself, and kill that in the middle."""
    import torch

    from capsdist.train.engine import operators

    environment = os.environ | operators._environment(torch.device("cpu"))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", operators._BUILD],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    kill_when_it_builds(process, operators._build_folder())


def kill_when_it_builds(process: subprocess.Popen, folder: Path) -> None:
    """Kill the process group once PyTorch's lock file is in `folder`, and all compilers there with it.

    Raises:
        RuntimeError: the process ends before it builds.
    """
    from capsdist.train.engine import operators

    while not (folder / "lock").exists():
        if process.poll() is not None:
            raise RuntimeError(f"the build in {folder} ended with {process.returncode} before it began")
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while pids := operators._builders(folder):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


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
