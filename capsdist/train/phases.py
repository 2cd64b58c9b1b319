"""The phases of a training step: time and memory of each, and a trace of some steps by torch's profiler."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import profile, record_function, schedule

__all__ = [
    "PHASES", "Keep", "Phase", "PhaseMeter", "StepProfiler", "forget_peak", "no_phase", "peak_bytes",
]  # fmt: skip

PHASES: tuple[str, ...] = ("data", "forward", "backward", "optimizer")
"""In the order of a step. data: await a batch, move it to the device, augment it; forward: with losses."""

Phase = Callable[[str], None]
"""Called with the name of a phase when it begins, which ends the one before."""

Keep = Callable[[str, bytes], object]
"""Called as ``keep(name, content)`` with a file that belongs to the run."""

_WARM_UP = 3  # steps before a trace: the first ones allocate and choose algorithms
_OWN = Path("/proc/self")


def no_phase(name: str) -> None:
    """Take no notice of a phase."""


class PhaseMeter:
    """Call it as a `Phase`. On a GPU every phase waits for the device, so that its time is its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._name = device, ""
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._peaks: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._began = 0.0

    def __call__(self, name: str) -> None:
        """Begin a phase; "" for none."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._name:
            self._seconds[self._name] += now - self._began
            self._peaks[self._name] = max(self._peaks[self._name], peak_bytes(self._device))
        forget_peak(self._device)
        self._name, self._began = name, time.perf_counter()

    def forget_times(self) -> None:
        """Begin to sum the times anew; memory peaks stay."""
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def most(self, world_size: int) -> tuple[dict[str, float], dict[str, int]]:
        """Return seconds and peak bytes by phase, of each the most of any rank. Collective."""
        values = [*self._seconds.values(), *self._peaks.values()]
        found = torch.tensor(values, dtype=torch.float64, device=self._device)
        if world_size > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        times, peaks = found.view(2, -1).tolist()
        return dict(zip(PHASES, times, strict=True)), dict(zip(PHASES, map(int, peaks), strict=True))


def peak_bytes(device: torch.device) -> float:
    """Return the most memory since `forget_peak`: of torch's tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = (_OWN / "status").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # no Linux
        import psutil  # late: `step.py` runs on a machine with torch alone

        return psutil.Process().memory_info().rss


def forget_peak(device: torch.device) -> None:
    """Begin anew to look for the peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # then the peak is that of the process since it began
        (_OWN / "clear_refs").write_text("5")


class StepProfiler:
    """Traces `num_steps` steps after some of warm-up; the trace becomes `profile/rank-R.json` of the run.

    Call `phase` as a `Phase`, `step` after every step, and `close` at the end, which writes what there is of
    a trace that is not whole. Chrome (chrome://tracing) and Perfetto show it.
    """

    def __init__(self, num_steps: int, rank: int, keep: Keep) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it reports its own start and stop otherwise
        self._name, self._keep = f"profile/rank-{rank}.json", keep
        self._span: record_function | None = None
        plan = schedule(wait=_WARM_UP - 1, warmup=1, active=num_steps, repeat=1)
        self._profile = profile(schedule=plan, on_trace_ready=self._write)
        self._profile.start()

    def phase(self, name: str) -> None:
        """Begin a phase; "" for none."""
        if self._span:
            self._span.__exit__(None, None, None)
        self._span = record_function(name) if name else None
        if self._span:
            self._span.__enter__()

    def step(self) -> None:
        """End a step."""
        self.phase("")
        self._profile.step()

    def close(self) -> None:
        """Stop; no more calls follow."""
        self.phase("")
        self._profile.stop()

    def _write(self, done: profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            done.export_chrome_trace(str(path))
            self._keep(self._name, path.read_bytes())
