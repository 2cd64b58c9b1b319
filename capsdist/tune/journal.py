"""The journal of a search: one line of JSON per event, from which its history is read.

Replaces `Tuner.restore`, which brings ASHA back without its past results, reads a state that is not
written atomically, and silently begins anew where it cannot. Here a line is whole or it is not there: with
each event the file is replaced, as object storage allows too; there are a few hundred of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    RootModel,
)  # fmt: skip

from capsdist.console import Log
from capsdist.errors import DocumentError, RunError
from capsdist.storage import Folder
from capsdist.storage.documents import dump_json, parse_document, seal
from capsdist.tune.space import CELL, checked_values

__all__ = [
    "FAILED", "FINISHED", "JOURNAL_NAME", "OUT_OF_MEMORY", "RUNNING", "STOPPED", "History", "Journal",
    "Trial",
]  # fmt: skip

JOURNAL_NAME = "journal.jsonl"
RUNNING: Final = "running"
FINISHED: Final = "finished"
STOPPED: Final = "stopped"
FAILED: Final = "failed"
OUT_OF_MEMORY: Final = "out of memory"

Event = dict[str, Any]
Point = Annotated[dict[str, Any], AfterValidator(checked_values)]
Percent = Annotated[float, Field(ge=0, le=100)]
End: TypeAlias = Literal["finished", "stopped", "failed", "out of memory"]
Status: TypeAlias = Literal["running"] | End


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid")

    time: NonNegativeFloat


class _Attempt(_Event):
    event: Literal["attempt"]


class _Begin(_Event):
    event: Literal["trial"]
    number: PositiveInt
    values: Point


class _Report(_Event):
    event: Literal["report"]
    number: PositiveInt
    step: NonNegativeInt
    error_percent: Percent


class _End(_Event):
    event: Literal["end"]
    number: PositiveInt
    status: End
    reason: str


class _Refusal(_Event):
    event: Literal["infeasible"]
    values: Point
    reason: str


class _Line(
    RootModel[Annotated[_Attempt | _Begin | _Report | _End | _Refusal, Field(discriminator="event")]]
):
    """A line of the journal, by its field `event`."""


@dataclass
class Trial:
    """One point that was tried. `reports`: (step, error_percent) in their order; stopped: early, by ASHA."""

    number: int
    values: dict[str, Any]
    status: Status = RUNNING
    reason: str = ""
    reports: list[tuple[int, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the trial's run."""
        return self.values.get(CELL) or f"trial-{self.number:02d}"

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

    reports: (number, step, error_percent) of all trials in the order in which they came; taken: numbers of
    trials that are not known any more, which new trials do not get.
    """

    trials: dict[int, Trial] = field(default_factory=dict)
    infeasible: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    reports: list[tuple[int, int, float]] = field(default_factory=list)
    attempts: list[Event] = field(default_factory=list)
    taken: set[int] = field(default_factory=set, compare=False)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event.

        Raises:
            DocumentError: it is of a trial that has not begun, or begins one a second time.
        """
        number = event.get("number")
        if number is not None and (number in self.trials) == (event["event"] == "trial"):
            self.taken.add(number)
            words = "begins a second time" if number in self.trials else "has not begun"
            raise DocumentError(f"is of trial {number}, which {words}")
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

    def next_number(self) -> int:
        """Return the number of a new trial."""
        return max([0, *self.trials, *self.taken]) + 1

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

    A damaged line is passed over with a warning and stays in the file; a last line that was cut off, as by a
    copy of the folder, is dropped. taken: numbers of trials that have left files.

    Raises:
        RunError: the file cannot be read.
    """

    def __init__(self, files: Folder, log: Log = lambda text: None, taken: Iterable[int] = ()) -> None:
        self._files, self._closed = files, False
        try:
            content = files.read(JOURNAL_NAME) or b""
        except DocumentError as error:
            raise RunError(f"{error}; move it away, and the search tries its trials anew") from None
        before, newline, _ = content.rpartition(b"\n")
        self._content = before + newline
        self.history = History(taken=set(taken))
        lines = self._content.split(b"\n")[:-1]
        unsealed = _num_unsealed(lines)
        for number, line in enumerate(lines, 1):
            try:
                event = parse_document(line, _Line, sealed=number > unsealed)
                self.history.add(event.model_dump())
            except DocumentError as error:
                log(f"warning: passed over line {number} of {files.path(JOURNAL_NAME)}: it {error}")

    def append(self, event: str, **values: Any) -> None:
        """Write an event down and take it in; without effect once closed.

        Raises:
            RunError: it cannot be written.
        """
        if self._closed:
            return
        row = {"event": event, "time": round(time.time(), 3), **values}
        self._content += dump_json(seal(row), indent=None)
        self._files.write(JOURNAL_NAME, self._content)
        self.history.add(row)

    def close(self) -> None:
        """Take no more events: what comes after a stop are consequences of it."""
        self._closed = True


def _num_unsealed(lines: Sequence[bytes]) -> int:
    """Return how many lines are of version 0.1, without checksums: those before the first start of today's.

    Of all others, one without its checksum is damaged. A start that is damaged itself is taken to be the last
    line before the first one with a checksum that is a start, or that cannot be read.
    """
    start = 0
    for number, line in enumerate(lines):
        with contextlib.suppress(DocumentError):
            event = parse_document(line, _Line, sealed=True).root.event
            return number if event == "attempt" else start
        try:
            is_start = parse_document(line, _Line).root.event == "attempt"
        except DocumentError:
            is_start = True
        start = number if is_start else start
    return len(lines)
