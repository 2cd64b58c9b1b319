"""Run functions on N gloo ranks, each a process of its own, without Ray.

    with Ranks(2) as ranks:
        results = ranks.run(function, argument)  # a list, one result per rank

The processes start once and serve any number of calls, because starting torch costs seconds. They meet
through a file, so no port is taken. A rank that raises or dies ends all of them, and the error holds the
traceback of each; so does a call that takes longer than its limit.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

START_LIMIT_S = 600.0


class RankError(RuntimeError):
    """A rank raised, died or hung; the message holds what each of them said."""


class Ranks:
    """`world_size` processes with one gloo group, one torch thread each."""

    def __init__(self, world_size: int, timeout_s: float = 600.0) -> None:
        self.world_size, self.timeout_s, self.closed = world_size, timeout_s, False
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            store = Path(self._folder.name) / "store"
            process = context.Process(target=_serve, args=(theirs, rank, world_size, store), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._collect(START_LIMIT_S)

    def run(self, function: Callable[..., Any], *args: Any, timeout_s: float | None = None) -> list[Any]:
        """Return what `function(*args)` returned on every rank; it must be importable from a module.

        Raises:
            RankError: if a rank raised, died, or was not done after `timeout_s`.
        """
        for pipe in self._pipes:
            pipe.send((function, args))
        return self._collect(timeout_s or self.timeout_s)

    def close(self) -> None:
        """End the processes; the object is of no use after it."""
        self.closed = True
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _collect(self, timeout_s: float) -> list[Any]:
        results: dict[int, Any] = {}
        faults: dict[int, str] = {}
        while len(results) + len(faults) < self.world_size:
            open_ranks = [r for r in range(self.world_size) if r not in results and r not in faults]
            # Once a rank has failed its peers may wait for it for ever: they get a moment to fail as well.
            ready = wait([self._pipes[rank] for rank in open_ranks], 2.0 if faults else timeout_s)
            if not ready:
                word = "still running" if faults else f"not done after {timeout_s:g} s"
                faults |= dict.fromkeys(open_ranks, word)
            for rank in open_ranks:
                if self._pipes[rank] in ready:
                    self._receive(rank, results, faults)
        if faults:
            self.close()
            raise RankError("\n".join(f"rank {rank}: {text}" for rank, text in sorted(faults.items())))
        return [results[rank] for rank in range(self.world_size)]

    def _receive(self, rank: int, results: dict[int, Any], faults: dict[int, str]) -> None:
        try:
            good, value = self._pipes[rank].recv()
        except (EOFError, OSError):
            self._processes[rank].join(5)
            faults[rank] = f"died with exit code {self._processes[rank].exitcode}"
        else:
            (results if good else faults)[rank] = value


def _serve(pipe: Connection, rank: int, world_size: int, store: Path) -> None:
    """Run in a rank's process: join the group, then answer calls until the pipe closes."""
    import torch
    import torch.distributed as dist

    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(store), world_size), rank=rank, world_size=world_size
    )
    pipe.send((True, None))
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(*args)
        except Exception:  # whatever it is, the test wants to see it
            answer = False, traceback.format_exc()
        _end_groups()
        pipe.send(answer)


def _end_groups() -> None:
    """End the groups of a call: the threads of each would poll for as long as the process lives."""
    import torch.distributed as dist

    known = dist.distributed_c10d._world.pg_map if dist.is_initialized() else {}
    # DeepSpeed makes a few groups once for a process and asks for them in every later call.
    cached = sys.modules.get("deepspeed.utils.groups")
    kept = [dist.group.WORLD, *(vars(cached).values() if cached else ())]
    if groups := [group for group in known if all(group is not each for each in kept)]:
        for group in groups:
            dist.destroy_process_group(group)
        gc.collect()  # threads end with the last reference
