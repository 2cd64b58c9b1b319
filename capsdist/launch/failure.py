"""Explain a failed Ray run in one line: the root cause among the errors of all workers.

When one worker fails, the others fail too, because their collective operations lose a partner;
those errors are consequences and come last. Imports no Ray: its exceptions are known by their attributes.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping

from capsdist.errors import CapsdistError, MemoryExhaustedError

__all__ = ["first_line", "full_disk", "is_out_of_memory", "one_line", "root_cause", "root_of_many"]

# What gloo, NCCL and torch.distributed say when a partner is gone.
_COLLATERAL = (
    "Connection closed by peer",
    "Connection reset",
    "Connection refused",
    "Broken pipe",
    "NCCL",
    "gloo",
)

_NO_MEMORY = re.compile(r"OutOfMemoryError|can't allocate memory|CUDA out of memory")
# How Ray's memory monitor begins its report of a page, and how it lists each process that it killed.
_MONITOR = re.compile(
    r"low on memory.*\(IP: (?P<ip>[^,]+),.*was (?P<used>[\d.]+)GB used / (?P<limit>[\d.]+)GB limit"
)
_KILLED = re.compile(r"task name=([^,]*),.*?pid=(\d+), actual memory used=([\d.]+)GB")
_DEAD = {"ActorDiedError", "ActorUnavailableError", "RayActorError", "WorkerCrashedError"}


def root_cause(error: BaseException) -> tuple[int | None, BaseException]:
    """Return the rank (None: not one worker's) and the innermost error that made a run fail."""
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, Mapping) and failures:
        return root_of_many(failures)
    for name in ("controller_failure", "health_check_failure", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return root_cause(inner)
    return None, error


def root_of_many(failures: Mapping[int, BaseException]) -> tuple[int, BaseException]:
    """Return the rank and innermost error, of the `failures` of workers by rank, that caused the others.

    One of our own wins, then a dead process, then any that does not merely report a lost partner.
    """
    causes = {rank: root_cause(failure)[1] for rank, failure in failures.items()}
    rank = min(causes, key=lambda rank: (_distance(causes[rank]), rank))
    return rank, causes[rank]


def one_line(rank: int | None, error: BaseException) -> str:
    """Return what happened in one line, with the worker it happened to."""
    where = "" if rank is None else f"worker {rank}: "
    if _is_dead_process(error) and "creation task" not in str(error):  # else the text ends with the reason
        return f"{where}its process died (killed, out of memory, or a native crash)"
    if monitored := _MONITOR.search(str(error)):
        killed = "; ".join(
            f"{task} (process {pid}, {size} GB)" for task, pid, size in _KILLED.findall(str(error))
        )
        return (
            f"{where}Ray's memory monitor killed {killed or 'a worker'}, because node {monitored['ip']} had "
            f"{monitored['used']} GB of {monitored['limit']} GB in use; use fewer workers per node, or set a "
            "smaller --train.microbatch-size"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, CapsdistError):
        return where + "; ".join(lines)
    return f"{where}{type(error).__name__}: {lines[-1] if lines else 'no message'}"


def first_line(error: BaseException | None) -> str:
    """Return the first line of the message of `error`, with the next one after a colon, else its type."""
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def full_disk(error: BaseException) -> str | None:
    """Return what the system says of a full disk or a used-up quota, if that is what `error` is about."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return os.strerror(error.errno)  # pyarrow has words of its own in `error.strerror`
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error`, of Python, torch, Ray or ours, says that there was not enough memory."""
    known = isinstance(error, MemoryError | MemoryExhaustedError)
    return known or bool(_NO_MEMORY.search(f"{type(error).__name__}: {error}"))


def _is_dead_process(error: BaseException) -> bool:
    return type(error).__name__ in _DEAD


def _distance(error: BaseException) -> int:
    if isinstance(error, CapsdistError):
        return 0
    if _is_dead_process(error):
        return 1
    return 3 if any(word in str(error) for word in _COLLATERAL) else 2
