"""The memory of a search: one line of JSON an event, appended as it happens; what is known is read from it.

Ours, in place of `Tuner.restore`, which brings ASHA back without its past results, reads a state that is not
written atomically, and silently begins anew where it cannot. Here a line is whole or it is not there: what a
SIGKILL cut off is dropped when the journal is opened again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FAILED", "FINISHED", "OUT_OF_MEMORY", "RUNNING", "STOPPED", "History", "Journal", "Trial"]

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
OUT_OF_MEMORY = "out of memory"

Event = dict[str, Any]


@dataclass
class Trial:
    """One point that was tried. `reports`: (step, error_percent) in their order; stopped: early, by ASHA."""

    number: int
    values: dict[str, Any]
    status: str = RUNNING
    reason: str = ""
    reports: list[tuple[int, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the trial's run."""
        return f"trial-{self.number:02d}"

    @property
    def step(self) -> int:
        """Training step of the last report."""
        return self.reports[-1][0] if self.reports else 0

    @property
    def error_percent(self) -> float | None:
        """Error of the last report."""
        return self.reports[-1][1] if self.reports else None


@dataclass
class History:
    """What a search knows: trials by number, points that were refused and why, wall clock of its starts.

    reports: (number, step, error_percent) of all trials in the order in which they came.
    """

    trials: dict[int, Trial] = field(default_factory=dict)
    infeasible: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    reports: list[tuple[int, int, float]] = field(default_factory=list)
    attempts: list[Event] = field(default_factory=list)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event."""
        match event["event"]:
            case "attempt":
                ended = sum(trial.status != RUNNING for trial in self.trials.values())
                self.attempts.append({"began": event["time"], "last": event["time"], "ended_before": ended})
            case "trial":
                self.trials[event["number"]] = Trial(event["number"], event["values"])
            case "report":
                report = event["step"], event["error_percent"]
                self.trials[event["number"]].reports.append(report)
                self.reports.append((event["number"], *report))
            case "end":
                trial = self.trials[event["number"]]
                trial.status, trial.reason = event["status"], event["reason"]
            case "infeasible":
                self.infeasible.append((event["values"], event["reason"]))
        if self.attempts:
            self.attempts[-1]["last"] = event["time"]

    def running(self) -> list[Trial]:
        """Return the trials that have begun and not ended."""
        return [trial for trial in self.trials.values() if trial.status == RUNNING]

    def ended(self) -> list[Trial]:
        """Return the trials that have ended in any way."""
        return [trial for trial in self.trials.values() if trial.status != RUNNING]

    @property
    def wall_s(self) -> float:
        """Seconds that the search has been under way, over all its starts, up to the last event of each."""
        return sum(attempt["last"] - attempt["began"] for attempt in self.attempts)


class Journal:
    """The journal at `path`, made if it does not exist; `history` is what it says."""

    def __init__(self, path: Path) -> None:
        self._path, self._closed = path, False
        path.touch()
        whole = path.read_bytes().rpartition(b"\n")[0]
        lines = whole.splitlines()
        with path.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
        self.history = _read(lines)

    def append(self, event: str, **values: Any) -> None:
        """Write an event down and take it in; without effect once closed."""
        if self._closed:
            return
        row = {"event": event, "time": round(time.time(), 3), **values}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.history.add(row)

    def close(self) -> None:
        """Take no more events: what comes after a stop are consequences of it."""
        self._closed = True


def _read(lines: Iterable[bytes]) -> History:
    history = History()
    for line in lines:
        history.add(json.loads(line))
    return history
