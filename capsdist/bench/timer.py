"""Time candidates in turns, so that other load on the machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Timing", "time_side_by_side"]


@dataclass(frozen=True)
class Timing:
    """The times of one candidate, in seconds, in the order in which they were taken."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Median time, in seconds."""
        return statistics.median(self.seconds)

    def percentile_s(self, percent: float) -> float:
        """Return the time, in seconds, that `percent` percent of the runs do not exceed (nearest rank)."""
        rank = max(1, -(-len(self.seconds) * percent // 100))
        return sorted(self.seconds)[int(rank) - 1]

    def summary(self) -> dict[str, float]:
        """Return median, 10th and 90th percentile and minimum in seconds, and the number of runs."""
        return {
            "median_s": self.median_s,
            "p10_s": self.percentile_s(10),
            "p90_s": self.percentile_s(90),
            "min_s": min(self.seconds),
            "num_runs": len(self.seconds),
        }


def time_side_by_side(
    candidates: Mapping[str, Callable[[], object]],
    *,
    budget_s: float,
    min_rounds: int = 3,
    max_rounds: int = 50,
) -> dict[str, Timing]:
    """Run every candidate once a round, after one round that is not counted.

    A ratio of two medians taken this way is steady on a machine that others use too.

    Args:
        candidates: what to run, by name; a GPU is waited for after each.
        budget_s: seconds after which no new round begins that would exceed them.
        min_rounds: rounds that are run whatever they take.
        max_rounds: rounds after which it ends.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    for rounds in range(max_rounds + 1):
        before = time.perf_counter()
        for name, run in candidates.items():
            seconds = _seconds(run)
            if rounds > 0:
                times[name].append(seconds)
        now = time.perf_counter()
        if rounds >= min_rounds and now - start + (now - before) > budget_s:
            break
    return {name: Timing(tuple(seconds)) for name, seconds in times.items()}


def _seconds(run: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
