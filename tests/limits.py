"""How long tests wait, no verdict on speed, only an end to waiting for what never comes; and a full disk."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["PATIENCE_S", "full_disk", "wait_until", "within", "without_progress"]

PATIENCE_S = 1200.0
"""Ten times the longest start or compilation on a quiet machine; a busy one must not turn a test red."""


def wait_until(met: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait for `met`, and fail saying `what` did not happen."""
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline, f"{what} within {timeout_s:g} s"
        time.sleep(0.05)


def without_progress(written: str) -> str:
    """Return what a command wrote without the lines about what takes it more than 5 s."""
    progress = ("reading ", "fetching and reading ", "writing ", "evaluated ")
    lines = written.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(progress))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """End what hangs in the main thread with an error."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def full_disk(max_bytes: int = 2000) -> Iterator[None]:
    """Let no file of this process become larger than `max_bytes`.

    Not a fixture: pytest writes its own report before it tears fixtures down, and that file counts as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
