"""Stop a run: a signal in the driver sets a stop event; the workers write a last checkpoint and end.

Left alone, Ray ends a driver at SIGTERM and aborts the workers at SIGINT, and nothing is saved, however
long one waits. Here the main thread owns the signals while `fit` runs in another; rank 0 asks the channel
about once per second and tells all ranks, so that they leave the loop after the same step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["StopPoll", "StopSignals", "grace_period_s", "job_warning"]

_POLL_S = 1.0  # between two questions of rank 0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job
_JOB_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
_JOB_WAIT_S = 3.0  # Ray's default
_END_S = 2.0  # what the driver needs after the last checkpoint
_SHORT_S = 15.0


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP in the main thread while the context is open; elsewhere nothing changes.

    They raise KeyboardInterrupt, except inside `training()`, where the first one sets an event. SIGHUP, which
    a closed terminal sends, stays ignored where it was, as `nohup` has it.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            if self._before[signal.SIGHUP] == signal.SIG_IGN:
                del self._before[signal.SIGHUP]
        self.take()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self) -> None:
        """Have the signals raise KeyboardInterrupt."""
        for number in self._before:
            signal.signal(number, _interrupt)

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Start or join Ray in this context, which ends in KeyboardInterrupt if a signal came meanwhile.

        An exception in the midst of `ray.init` could leave its locks taken, so only a second signal raises at
        once. SIGHUP is blocked and delivered at the end: the processes that Ray starts inherit that, so that
        a closed terminal, which sends it to them as well, leaves them alive for a last checkpoint.
        """
        came = False

        def note(number: int, frame: object) -> None:
            nonlocal came
            if came:
                raise KeyboardInterrupt
            came = True

        hangup = {signal.SIGHUP} & self._before.keys()
        for number in self._before:
            signal.signal(number, note)
        signal.pthread_sigmask(signal.SIG_BLOCK, hangup)
        try:
            with _sigterm_is_ours() if self._before else contextlib.nullcontext():
                yield
        except Exception:
            if not came:
                raise
        finally:
            self.take()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, hangup)
        if came:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def training(self) -> Iterator[threading.Event]:
        """Yield an event that the first signal sets; a second one raises KeyboardInterrupt."""
        stop_event = threading.Event()

        def handle(number: int, frame: object) -> None:
            _leave_lost_terminal()
            stop_event.set()
            self.take()

        for number in self._before:
            signal.signal(number, handle)
        try:
            yield stop_event
        finally:
            self.take()


@contextlib.contextmanager
def _sigterm_is_ours() -> Iterator[None]:
    """Keep `ray.init` from taking SIGTERM for itself, for which it has no option."""
    import ray._private.utils as utils

    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda sigterm_handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


def _interrupt(number: int, frame: object) -> None:
    _leave_lost_terminal()
    raise KeyboardInterrupt


def _leave_lost_terminal() -> None:
    """Put /dev/null in the place of a terminal that has been closed: every write to it would fail."""
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, descriptor)
                os.close(null)


class StopPoll:
    """The workers' side, on every rank: call it after every step; all ranks get the same answer.

    Rank 0 asks at steps that it announces with the answer before: about a second apart, however long each is.
    Cost: a comparison of integers a step; a call of an actor and a broadcast of 16 bytes per second.
    """

    def __init__(self, channel: Any, *, rank: int, world_size: int, device: torch.device) -> None:
        self._channel, self._rank, self._world_size, self._device = channel, rank, world_size, device
        self._next_step, self._interval = 0, 1
        self._asked_at = time.monotonic()

    def __call__(self, step: int) -> bool:
        """Return whether the run shall stop after `step`."""
        if step < self._next_step:
            return False
        import torch
        import torch.distributed as dist

        answer = torch.tensor(self._ask() if self._rank == 0 else (0, 0), device=self._device)
        if self._world_size > 1:
            dist.broadcast(answer, 0)
        stop, self._interval = answer.tolist()
        self._next_step = step + self._interval
        return bool(stop)

    def _ask(self) -> tuple[int, int]:
        """Return whether to stop (0 or 1), and in how many steps to ask again."""
        import ray

        now = time.monotonic()
        step_s = max((now - self._asked_at) / self._interval, 1e-6)
        self._asked_at = now
        interval = min(max(int(_POLL_S / step_s), 1), 2 * self._interval)  # grows slowly: step times vary
        return int(ray.get(self._channel.poll.remote())), interval


def grace_period_s(stop_timeout_s: float) -> float:
    """Return the seconds to wait for the last checkpoint: in a Ray job, less than its server waits for us."""
    if _IN_JOB not in os.environ:
        return stop_timeout_s
    return max(0.0, min(stop_timeout_s, _job_wait_s() - _END_S))


def job_warning() -> str | None:
    """Return a warning if this is a Ray job that `ray job stop` gives no time for a last checkpoint."""
    if _IN_JOB not in os.environ or (wait_s := _job_wait_s()) >= _SHORT_S:
        return None
    return (
        f"warning: {_JOB_WAIT}={wait_s:g}: `ray job stop` kills this job {wait_s:g} s after asking it to "
        "stop, perhaps before its last checkpoint; submit it with "
        f'--runtime-env-json \'{{"env_vars": {{"{_JOB_WAIT}": "120"}}}}\', or set it where Ray starts'
    )


def _job_wait_s() -> float:
    try:
        return float(os.environ[_JOB_WAIT])
    except (KeyError, ValueError):
        return _JOB_WAIT_S
