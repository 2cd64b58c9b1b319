"""The memory of a search: one line of JSON an event, appended as it happens; what is known is read from it.

Ours, in place of `Tuner.restore`, which brings ASHA back without its past results, reads a state that is not
written atomically, and silently begins anew where it cannot. Here a line is whole or it is not there: with
each event the file is replaced, as object storage allows too; there are a few hundred of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from capsdist.train.cluster.files import RunFiles

__all__ = [
    "FAILED",
    "FINISHED",
    "JOURNAL_NAME",
    "OUT_OF_MEMORY",
    "RUNNING",
    "STOPPED",
    "History",
    "Journal",
    "Trial",
]

JOURNAL_NAME = "journal.jsonl"
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
    """The journal among the `files` of a search; `history` is what it says.

    A last line that was cut off, as by a copy of the folder, is dropped.
    """

    def __init__(self, files: RunFiles) -> None:
        self._files, self._closed = files, False
        before, newline, _ = (files.read(JOURNAL_NAME) or b"").rpartition(b"\n")
        self._content = before + newline
        self.history = _read(self._content.splitlines())

    def append(self, event: str, **values: Any) -> None:
        """Write an event down and take it in; without effect once closed.

        Raises:
            RunError: it cannot be written.
        """
        if self._closed:
            return
        row = {"event": event, "time": round(time.time(), 3), **values}
        self._content += json.dumps(row).encode() + b"\n"
        self._files.write(JOURNAL_NAME, self._content)
        self.history.add(row)

    def close(self) -> None:
        """Take no more events: what comes after a stop are consequences of it."""
        self._closed = True


def _read(lines: Iterable[bytes]) -> History:
    history = History()
    for line in lines:
        history.add(json.loads(line))
    return history
