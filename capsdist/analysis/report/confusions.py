"""The confusions of an evaluation: a table of few classes, a picture of many, and the most frequent ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capsdist.analysis.report.pages import png

__all__ = ["Confusions"]

MAX_WRITTEN = 20
"""Up to so many classes the table is written out."""
_NUM_WORST = 12
_POWER = 0.4  # below 1: single confusions are visible beside a full diagonal


@dataclass(frozen=True)
class Confusions:
    """What images of each class were read as.

    classes: names; counts [true][read]; shades [true][read]: 0 to 1; errors: in percent of the class, None of
    one without images; worst: (true class, read as, images), most frequent first; picture: in place of the
    table, a data URL.
    """

    classes: list[str]
    counts: list[list[int]]
    shades: list[list[float]]
    errors: list[float | None]
    worst: list[tuple[str, str, int]]
    picture: str | None

    @classmethod
    def of(cls, counts: Sequence[Sequence[int]], names: Sequence[str]) -> Confusions:
        """Return the confusions of a table [true][read]; classes without a name have their number."""
        table = np.array(counts)
        totals = table.sum(1)
        classes = [*names, *map(str, range(len(names), len(table)))][: len(table)]
        shades = (table / np.maximum(totals, 1)[:, None]) ** _POWER
        right = table.diagonal()
        wrong = table - np.diag(right)
        order = np.argsort(-wrong, axis=None, kind="stable")[:_NUM_WORST]
        pairs = [divmod(int(place), len(table)) for place in order]
        errors = [
            100 - 100 * float(good) / int(total) if total else None
            for good, total in zip(right, totals, strict=True)
        ]
        return cls(
            classes=classes,
            counts=table.tolist(),
            shades=shades.round(3).tolist(),
            errors=errors,
            worst=[(classes[i], classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]],
            picture=None if len(table) <= MAX_WRITTEN else _picture(shades, right=np.eye(len(table))),
        )


def _picture(shades: np.ndarray, right: np.ndarray) -> str:
    """Return a picture of a pixel a cell: blue on the diagonal, orange beside it, transparent where 0."""
    blue, orange = np.array([0, 0.45, 0.7]), np.array([0.84, 0.37, 0])
    colours = np.where(right[..., None] > 0, blue, orange)
    return png(np.concatenate([colours, shades[..., None]], axis=2), max_side=None)
