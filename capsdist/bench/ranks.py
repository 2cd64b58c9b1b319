"""Run a function on processes of its own: ranks of a gloo group, one torch thread each, without Ray.

The memory of a process that does one thing only can be measured; `PeakMemory` does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from capsdist.errors import RunError
from capsdist.storage.temporary import temporary_folder

__all__ = ["PeakMemory", "on_ranks", "resident_bytes"]

_MEMORY = {"now": re.compile(r"VmRSS:\s+(\d+) kB"), "peak": re.compile(r"VmHWM:\s+(\d+) kB")}


def on_ranks(function: Callable[..., Any], world_size: int, *args: Any, group: bool = True) -> list[Any]:
    """Return what ``function(*args)`` returns on each of `world_size` new processes, in their order.

    function: importable by name; with `group` it finds an initialised process group (gloo, loopback only).

    Raises:
        RunError: a process raised or died; the message is the last line of its traceback.
    """
    context = multiprocessing.get_context("spawn")
    with temporary_folder() as folder, contextlib.ExitStack() as stack:
        pipes: list[Connection] = []
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            place = (rank, world_size, folder / "store" if group else None)
            process = context.Process(target=_serve, args=(theirs, place, function, args), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(process.kill)
            pipes.append(ours)
        results: dict[Connection, Any] = {}
        while len(results) < world_size:  # the first that fails has the cause
            for pipe in wait([pipe for pipe in pipes if pipe not in results]):
                assert isinstance(pipe, Connection)
                results[pipe] = _received(pipes.index(pipe), pipe)
        return [results[pipe] for pipe in pipes]


def _received(rank: int, pipe: Connection) -> Any:
    try:
        good, value = pipe.recv()
    except EOFError:
        good, value = False, "it was killed; was there memory enough?"
    if not good:
        raise RunError(f"process {rank} of the measurement failed: {value}")
    return value


def _serve(
    pipe: Connection,
    place: tuple[int, int, Path | None],
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    rank, world_size, store = place
    os.environ["LOCAL_RANK"] = str(rank)
    try:
        import torch
        import torch.distributed as dist

        from capsdist.train.engine.interfaces import on_loopback

        torch.set_num_threads(1)
        if store:
            with on_loopback():
                dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
        pipe.send((True, function(*args)))
        if store:
            dist.barrier()  # nobody leaves while another one still talks to it
    except Exception as error:
        pipe.send((False, traceback.format_exception_only(error)[-1].strip()))


def resident_bytes(which: str = "now") -> int:
    """Return the resident memory of this process: `now`, or its `peak` since the last reset (Linux).

    Not that of getrusage: a new program inherits it from the process that started it.
    """
    found = _MEMORY[which].search(Path("/proc/self/status").read_text())
    assert found, "Linux tells resident memory in /proc/self/status"
    return 1024 * int(found[1])


class PeakMemory:
    """The peak of resident memory above that at its creation, in bytes."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
        self._start = resident_bytes()

    @property
    def bytes(self) -> int:
        """Peak so far above the start."""
        return resident_bytes("peak") - self._start
