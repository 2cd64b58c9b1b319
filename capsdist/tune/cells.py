"""Cells of a grid: what becomes of them, and what may be wrong with them. Imports no torch, no Ray."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from capsdist.config import PRESETS, Config, get_preset
from capsdist.errors import Problem
from capsdist.launch import preflight
from capsdist.runs.rundir import changed_fields
from capsdist.tune.journal import Status

__all__ = ["Cell", "changed_values", "grid_problems", "length_of"]

# Free for a run, but trials of different lengths cannot be compared.
_END_FIELDS = (("train", "epochs"), ("train", "max_steps"), ("optim", "schedule_steps"))
_MORE_END_FIELDS = (("train", "stop_at_error"), ("train", "patience"))


@dataclass(frozen=True)
class Cell:
    """What became of a cell. place: folder of its run; error_percent: of the test at the end.

    reason: why it failed; error_interval_percent: ends of its 95 % interval by Wilson.
    """

    name: str
    place: str
    status: Status | Literal["missing"]
    reason: str = ""
    step: int = 0
    error_percent: float | None = None
    error_interval_percent: list[float] | None = None


def grid_problems(cells: Mapping[str, Config]) -> list[Problem]:
    """Return every problem of the cells, each once."""
    found: dict[str, Problem] = {}
    if not cells:
        none = Problem("cells", 0, "is nothing to train", "choose other columns, depths or remedies")
        found[str(none)] = none
    for cell in cells.values():
        found |= {str(problem): problem for problem in preflight.all_problems(preflight.absolute(cell))}
        if cell.train.dry_run:
            rule = "is for a run, not for a grid"
            problem = Problem("train.dry_run", cell.train.dry_run, rule, "leave it out")
            found[str(problem)] = problem
    return list(found.values())


def changed_values(old: Config, new: Config) -> dict[str, tuple[object, object]]:
    """Return as `changed_fields`, and the length of the training where it differs."""
    changed = dict(changed_fields(old, new))
    for section, name in _END_FIELDS:
        values = tuple(getattr(getattr(each, section), name) for each in (old, new))
        changed |= {f"{section}.{name}": values} if values[0] != values[1] else {}
    return changed


def length_of(cells: Collection[Config]) -> str:
    """Return how long cells train, as records are named: `whole` as their presets have it, `1-epoch`,
    `300-steps`, or `cut` where they differ."""
    if all(cell.preset in PRESETS and _end(cell) == _end(get_preset(cell.preset)) for cell in cells):
        return "whole"
    lengths = {(cell.train.epochs, cell.train.max_steps) for cell in cells}
    if len(lengths) > 1:
        return "cut"
    [(epochs, steps)] = lengths
    return f"{steps}-steps" if steps else f"{epochs}-epoch{'s' * (epochs > 1)}"


def _end(config: Config) -> list[object]:
    return [getattr(getattr(config, section), name) for section, name in _END_FIELDS + _MORE_END_FIELDS]
