"""Benchmark start-up: the import of the package, and a job's `--check`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["startup_figures"]


def startup_figures(job: Path, *, repeats: int) -> dict[str, float]:
    """Return medians over fresh interpreters, in seconds; the interpreter's own start is one of the figures.

    `job` is a training job that knows `--check`. Files come from the page cache, but for the first start.

    Raises:
        subprocess.CalledProcessError: the job refuses its own default.
    """
    return {
        "python_s": _seconds(["-c", "pass"], repeats),
        "import_s": _seconds(["-c", "import capsdist"], repeats),
        "check_s": _seconds([str(job), "--check"], repeats),
    }


def _seconds(arguments: list[str], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
