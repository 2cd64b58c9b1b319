"""Report a search: a row per trial, the best one, the Pareto front, and a command to train it again.

Pure but for reading the trials' metrics. `error_percent` is of the split the trials were compared on, so the
best one's is a little too good: measure it again on images that no trial has seen.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from capsdist.config import Config, with_values
from capsdist.console import Log, command_line
from capsdist.errors import DocumentError, RunError
from capsdist.models.counts import num_parameters
from capsdist.runs.record import read_rows
from capsdist.storage import Folder
from capsdist.train.metrics import METRICS_NAME
from capsdist.tune.journal import FINISHED, History, Percent, Point, Status
from capsdist.tune.space import FIELDS

__all__ = [
    "BEST_NAME", "TRIALS_NAME", "SearchResult", "TrialRow", "best_row", "in_words", "median_speed", "pareto",
    "rows_of", "short_values", "sum_up", "table",
]  # fmt: skip

TRIALS_NAME = "trials"
"""The runs of the trials, in the folder of a search."""
BEST_NAME = "best.yaml"
"""The configuration of the best trial, in the folder of a search."""
_MAX_REASON = 200  # characters
_MAX_INFEASIBLE = 8  # lines of the table; result.json has all


@dataclass(frozen=True)
class TrialRow:
    """One trial: its point, what became of it, and what it cost; None: not measured.

    images_per_s is the median over the trial, beside the other trials of its time.
    """

    name: str
    values: Point
    status: Status
    reason: str
    step: NonNegativeInt
    error_percent: Percent | None
    images_per_s: NonNegativeFloat | None
    num_parameters: NonNegativeInt


@dataclass(frozen=True)
class SearchResult:
    """Outcome of a search, and its result.json. `best`: name of a trial, `command` trains it anew.

    max_trials: how many were asked for; wall_s: over all starts; attempts: when each start began, its last
    event, and how many trials had ended before it.
    """

    name: str
    folder: str
    status: Literal["done"]
    total_steps: NonNegativeInt
    max_trials: PositiveInt
    wall_s: float
    best: str
    error_percent: Percent
    command: str
    config: dict[str, Any]
    trials: list[TrialRow]
    infeasible: list[dict[str, Any]]
    attempts: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return asdict(self)


def rows_of(history: History, config: Config, files: Folder, log: Log = lambda text: None) -> list[TrialRow]:
    """Return a row for every trial of `history`; `config` is what the points are laid over.

    `log` is told of metrics that are damaged and passed over.
    """
    return [
        TrialRow(
            name=trial.name,
            values=trial.values,
            status=trial.status,
            reason=trial.reason,
            step=trial.step,
            error_percent=trial.error_percent,
            images_per_s=median_speed(files, f"{TRIALS_NAME}/{trial.name}/{METRICS_NAME}", log),
            num_parameters=num_parameters(with_values(config, trial.values)),
        )
        for trial in history.trials.values()
    ]


def sum_up(
    config: Config,
    history: History,
    files: Folder,
    total_steps: int,
    max_trials: int,
    log: Log = lambda text: None,
) -> SearchResult:
    """Return the result of a search around `config`, whose trials have ended and lie among its `files`.

    Raises:
        RunError: none has finished; the message says what became of the last one.
    """
    rows = rows_of(history, config, files, log)
    best = best_row(rows)
    if best is None or best.error_percent is None:
        last = rows[-1]
        raise RunError(
            f"search {config.train.name!r}: none of {len(rows)} trials finished; {last.name} {last.status}: "
            f"{last.reason or f'at step {last.step:,}'}"
        )
    name = f"{config.train.name}-best"
    train = config.train.model_copy(update={"name": name})
    again = with_values(config, best.values).model_copy(update={"train": train})
    return SearchResult(
        name=config.train.name,
        folder=str(files),
        status="done",
        total_steps=total_steps,
        max_trials=max_trials,
        wall_s=history.wall_s,
        best=best.name,
        error_percent=best.error_percent,
        command=command_line(f"train --config {shlex.quote(files.path(BEST_NAME))}"),
        config=again.model_dump(mode="json"),
        trials=rows,
        infeasible=[{"values": values, "reason": reason} for values, reason in history.infeasible],
        attempts=history.attempts,
    )


def median_speed(files: Folder, name: str, log: Log) -> float | None:
    """Return the median images/s of a trial's metrics, None without any."""
    try:
        rows = read_rows(files, log, name)
    except DocumentError as error:
        log(f"warning: passed over the metrics of a trial: {error}")
        return None
    speeds = [row["images_per_s"] for row in rows if row["kind"] == "train" and row.get("images_per_s")]
    return statistics.median(speeds) if speeds else None


def best_row(rows: Sequence[TrialRow]) -> TrialRow | None:
    """Return the finished trial with the lowest error, or None if none finished.

    Of equal errors the fastest is the best, of equally fast ones the smallest.
    """
    finished = [row for row in rows if row.status == FINISHED and row.error_percent is not None]
    return min(finished, key=_order, default=None)


def pareto(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Return the finished trials that no other one beats in both error and images/s, the fastest first."""
    measured = [row for row in rows if row.status == FINISHED and row.error_percent is not None]
    front: list[TrialRow] = []
    for row in sorted(measured, key=lambda row: (-(row.images_per_s or 0.0), *_order(row))):
        if not front or _error(row) < _error(front[-1]):
            front.append(row)
    return front


def short_values(values: Mapping[str, Any]) -> dict[str, str]:
    """Return a point as words for people: dimension and value."""
    names = {field: name for name, field in FIELDS.items()}

    def word(value: bool | float | str) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return value if isinstance(value, str) else f"{value:g}"

    return {names[field]: word(value) for field, value in values.items() if field in names}


def in_words(values: Mapping[str, Any]) -> str:
    """Return a point in one line."""
    return "  ".join(f"{name} {value}" for name, value in short_values(values).items())


def table(result: SearchResult) -> list[str]:
    """Return the lines of a table: trials from the lowest error to the highest, then points not tried."""
    rows = sorted(result.trials, key=lambda row: (row.status != FINISHED, *_order(row)))
    front = {row.name for row in pareto(rows)}
    cells = [_cells(row, row.name == result.best, row.name in front) for row in rows]
    heads = list(cells[0])
    widths = {name: max(len(name), *(len(line[name]) for line in cells)) for name in heads}

    def line(texts: Mapping[str, str]) -> str:
        left = ("trial", "status")
        words = [texts[n].ljust(widths[n]) if n in left else texts[n].rjust(widths[n]) for n in heads]
        return "  ".join(words).rstrip()

    lines = [line({name: name for name in heads}), "-" * len(line({n: "x" * widths[n] for n in heads}))]
    lines += [line(texts) for texts in cells]
    lines += [f"{row.name} {row.status}: {_shortened(row.reason)}" for row in rows if row.reason]
    for refused in result.infeasible[:_MAX_INFEASIBLE]:
        lines.append(f"infeasible: {in_words(refused['values'])}: {refused['reason']}")
    if (more := len(result.infeasible) - _MAX_INFEASIBLE) > 0:
        lines.append(f"infeasible: {more:,} more, all in result.json")
    return lines


def _shortened(reason: str) -> str:
    return reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]} ... (all of it in result.json)"


def _cells(row: TrialRow, best: bool, front: bool) -> dict[str, str]:
    mark = "best" if best else "Pareto" if front else ""
    return {
        "trial": row.name,
        **short_values(row.values),
        "parameters": f"{row.num_parameters:,}",
        "images/s": "-" if row.images_per_s is None else f"{row.images_per_s:,.0f}",
        "steps": f"{row.step:,}",
        "error_percent": "-" if row.error_percent is None else f"{row.error_percent:.2f}",
        "": mark,
        "status": row.status,
    }


def _error(row: TrialRow) -> float:
    return float("inf") if row.error_percent is None else row.error_percent


def _order(row: TrialRow) -> tuple[float, float, int]:
    """Return what trials are sorted by: error, then speed, then size."""
    return _error(row), -(row.images_per_s or 0.0), row.num_parameters
