"""What a figure has to be, and the rows of the tables of results that say so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Aim", "Row", "goals_table", "least", "most", "number"]

_SIGNIFICANT = 4  # digits of the figures in records


@dataclass(frozen=True)
class Aim:
    """What a figure has to be; `bound` is "at least" or "at most"."""

    bound: str
    value: float

    def missed_by(self, value: float) -> bool:
        """Return whether `value` does not reach it."""
        return value < self.value if self.bound == "at least" else value > self.value


def least(value: float) -> Aim:
    """Return the aim of a figure that may not be smaller."""
    return Aim("at least", value)


def most(value: float) -> Aim:
    """Return the aim of a figure that may not be larger."""
    return Aim("at most", value)


@dataclass(frozen=True)
class Row:
    """One line of the table: its aim, which figure of which record answers it, and what kind that is.

    kind: words, or "median" with `runs`, where in the record the number of runs stands.
    """

    label: str
    aim: Aim | str | None
    what: str | None = None
    figure: str = "error_percent"
    unit: str = " %"
    kind: str = "one run"
    runs: str = ""
    headline: bool = False
    """Whether the row stands in the README of the project too."""


def goals_table(rows: Sequence[Row], figures: Mapping[str, Any]) -> str:
    """Return the aims of `rows` beside `figures` as text: each line ends with reached, missed or not run."""
    lines = []
    for row in rows:
        if not isinstance(row.aim, Aim):
            continue
        value = figures.get(row.figure)
        state = "not run" if value is None else "missed" if row.aim.missed_by(value) else "reached"
        found = "" if value is None else f"{number(value)}{row.unit}"
        aim = f"{row.aim.bound} {number(row.aim.value)}{row.unit}"
        lines.append(f"{row.figure:36} {aim:18} {found:>12}  {state}")
    return "\n".join(lines)


def number(value: float) -> str:
    """Return a figure as tables and texts show it: to the digits that records hold, grouped by commas."""
    exponent = math.floor(math.log10(abs(value))) if value else 0
    text = f"{value:,.{max(0, _SIGNIFICANT - 1 - exponent)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
