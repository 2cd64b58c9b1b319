"""Watch the workers: if no step is done for too long, all are killed, and Ray starts them again.

A process that was stopped (SIGSTOP) or that waits for a dead mount ends in no error. Workers tell the
event channel of their steps, the driver looks how old the last sign is. Before workers are killed, a signal
makes each write the stacks of its threads, in C, without Python's lock; one that cannot is told by its state.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from capsdist.errors import CapsdistError
from capsdist.runs.rundir import STACKS
from capsdist.storage import Folder
from capsdist.storage.temporary import temporary_folder
from capsdist.train.metrics import Row

__all__ = ["Watchdog", "WorkerProcess", "watched"]

_SIGNAL = signal.SIGUSR1
_SIGN_S = 1.0  # between two signs of a worker, and between two looks of the driver
_LOOK_S = 5.0  # what counts at most between two looks: the driver itself may have been stopped
_ANSWER_S = 5.0  # for a worker to write its stacks
_NODE_S = 120.0  # for a node to do its part
_STATES = {"T": "is stopped", "t": "is stopped by a debugger", "D": "waits for a file or a device"}


@dataclass(frozen=True)
class WorkerProcess:
    """A worker as its node knows it; started: ticks since boot; stacks: the file for its stacks."""

    rank: int
    pid: int
    started: int | None
    host: str
    node_id: str
    stacks: str


@dataclass(frozen=True)
class _Found:
    """What a worker was found to do, None if it had ended; stacks: empty if it did not answer."""

    worker: WorkerProcess
    state: str | None
    stacks: str


@contextlib.contextmanager
def watched(channel: Any, rank: int) -> Iterator[Callable[[], None]]:
    """In a worker: be watched while the context is open; call what is yielded after every step,
    and often where something else takes long.

    Cost: the time of day a step, a call of an actor a second, which is not waited for.
    """
    last = time.monotonic()

    def sign() -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _SIGN_S:
            last = now
            channel.sign.remote()

    with temporary_folder() as folder, (folder / STACKS).open("w") as file:
        faulthandler.register(_SIGNAL, file)
        node_id = ray.get_runtime_context().get_node_id()
        started = _started(os.getpid())
        worker = WorkerProcess(rank, os.getpid(), started, socket.gethostname(), node_id, file.name)
        ray.get(channel.join.remote(worker))  # has arrived: what follows may freeze this process
        try:
            yield sign
        finally:
            channel.leave.remote(rank)
            faulthandler.unregister(_SIGNAL)


class Watchdog:
    """The driver's side: call `look` often. timeout_s: without a sign of any worker, 0 for no limit."""

    def __init__(self, channel: Any, timeout_s: float, files: Folder, show: Callable[[Row], None]) -> None:
        self._channel, self._timeout_s, self._files, self._show = channel, timeout_s, files, show
        self._seen: object = None
        self._stories = ""
        self._looked, self._silent_s = time.monotonic(), 0.0

    def look(self) -> None:
        """End the workers, and say so, if none has done a step for too long."""
        since = time.monotonic() - self._looked
        if not self._timeout_s or since < _SIGN_S:
            return
        self._looked += since
        workers, _ = seen = ray.get(self._channel.watch.remote())
        if seen != self._seen or not workers:
            self._seen, self._silent_s = seen, 0.0
            return
        self._silent_s += min(since, _LOOK_S)
        if self._silent_s >= self._timeout_s:
            self._silent_s = 0.0
            self._end(workers)

    def _end(self, workers: list[WorkerProcess]) -> None:
        found = _end_on_nodes(workers)
        ended = {each.worker.rank for each in found if each.state is None}
        if len(ended) == len(workers):
            return
        message = f"warning: no step for {self._timeout_s:g} s: {_frozen(workers, found)}"
        message += "; killed all workers to start them again from the newest checkpoint"
        with contextlib.suppress(CapsdistError):  # the storage may be what has failed
            self._stories += _stacks_of(message, workers, found)  # a later one must not hide the first
            self._files.write(STACKS, self._stories.encode(errors="backslashreplace"))
            message += f"; their stacks are in {self._files.path(STACKS)}"
        self._show({"kind": "note", "message": message})


def _end_on_nodes(workers: list[WorkerProcess]) -> list[_Found]:
    """Look at the workers and kill them, on all nodes at a time; those of nodes that do not answer lack."""
    nodes = sorted({worker.node_id for worker in workers})
    calls = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(_end_here).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        calls.append(task.remote([worker for worker in workers if worker.node_id == node]))
    ready, _ = ray.wait(calls, num_returns=len(calls), timeout=_NODE_S)
    found = []
    for call in ready:
        with contextlib.suppress(ray.exceptions.RayError):  # the node is gone
            found += ray.get(call)
    return found


def _end_here(workers: list[WorkerProcess]) -> list[_Found]:
    """On the workers' node: have them write their stacks, then kill them."""
    alive = [worker for worker in workers if _started(worker.pid) == worker.started]
    for worker in alive:
        _send(worker, _SIGNAL)
    until = time.monotonic() + _ANSWER_S
    while time.monotonic() < until and not all(map(_written, alive)):
        time.sleep(0.1)
    time.sleep(0.1)  # for the rest of what is being written
    found = [
        _Found(worker, _state(worker.pid) if worker in alive else None, _written(worker))
        for worker in workers
    ]
    for worker in alive:
        _send(worker, signal.SIGKILL)
    return found


def _send(worker: WorkerProcess, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker.pid, number)


def _written(worker: WorkerProcess) -> str:
    try:
        return Path(worker.stacks).read_text(errors="replace")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on, none where it is gone or there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else None


def _state(pid: int) -> str:
    return "".join(_stat(pid)[:1])


def _frozen(workers: list[WorkerProcess], found: list[_Found]) -> str:
    """Return which workers do not answer, in words."""
    by_rank = {each.worker.rank: each for each in found}
    silent = []
    for worker in workers:
        each = by_rank.get(worker.rank)
        name = f"worker {worker.rank} (process {worker.pid} on {worker.host})"
        if each is None:
            silent.append(f"{name} cannot be looked at, its node does not answer")
        elif each.state is not None and not each.stacks:
            silent.append(f"{name} does not answer, it {_STATES.get(each.state, 'is busy')}")
    return " and ".join(silent) or "all workers answer, their stacks show what they wait for"


def _stacks_of(message: str, workers: list[WorkerProcess], found: list[_Found]) -> str:
    """Return what is kept in the run's folder."""
    stacks = {each.worker.rank: each.stacks for each in found}
    parts = [f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n"]
    for worker in workers:
        text = stacks.get(worker.rank) or "no answer\n"
        parts.append(f"worker {worker.rank}, process {worker.pid} on {worker.host}:\n{text}")
    return "\n".join(parts) + "\n"
