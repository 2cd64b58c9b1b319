"""What a figure has to be, and the rows of the tables of results that say so."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Aim", "Row", "least", "most"]


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
