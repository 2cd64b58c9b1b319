"""The subjects of the scaling study, by name; what cannot be measured is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from capsdist.bench import (
    planner_check,
    scaling_capsules,
    scaling_overhead,
    scaling_shapes,
    scaling_workers,
    scaling_zero,
)
from capsdist.bench.scaling_capsules import capsule_figures
from capsdist.bench.scaling_overhead import overhead_figures
from capsdist.bench.scaling_shapes import STUDIES, Point, shape_figures
from capsdist.bench.scaling_workers import Scaling, worker_figures
from capsdist.bench.scaling_zero import zero_figures
from capsdist.console import Log

__all__ = ["SUBJECTS", "Found", "Settings", "Subject", "measure"]

Subject: TypeAlias = Literal["workers", "shapes", "overhead", "zero", "planner", "capsules"]


@dataclass
class Found:
    """What has been measured: figures, and the points of the study of shapes."""

    figures: dict[str, float] = field(default_factory=dict)
    points: dict[str, list[Point]] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What is measured. rounds: of blocks of each arm of workers; blocks: pairs of the overhead."""

    goals: bool
    cores: int
    rounds: int
    blocks: int


def measure(settings: Settings, subjects: Sequence[Subject], log: Log) -> Found:
    """Return what `subjects` found, one after the other; `log` is told what is measured or left out.

    Raises:
        CapsdistError: as the functions that measure.
    """
    found = Found()
    for subject in subjects:
        known = set(found.figures)
        SUBJECTS[subject](settings, log, found)
        for name, value in found.figures.items():
            if name not in known:
                log(f"{name} {value:.4g}")
    return found


def _workers(settings: Settings, log: Log, found: Found) -> None:
    log(str(scaling_workers.__doc__))
    found.figures |= worker_figures(Scaling(rounds=settings.rounds), settings.cores, log)


def _shapes(settings: Settings, log: Log, found: Found) -> None:
    log(str(scaling_shapes.__doc__))
    figures, found.points = shape_figures(tuple(STUDIES), goals=settings.goals, log=log)
    found.figures |= figures


def _overhead(settings: Settings, log: Log, found: Found) -> None:
    log(str(scaling_overhead.__doc__))
    found.figures |= overhead_figures(settings.blocks, log=log)


def _zero(_: Settings, log: Log, found: Found) -> None:
    log(str(scaling_zero.__doc__))
    found.figures |= zero_figures(log)


def _planner(_: Settings, log: Log, found: Found) -> None:
    log(str(planner_check.__doc__))
    found.figures |= planner_check.figures(log)


def _capsules(_: Settings, log: Log, found: Found) -> None:
    log(str(scaling_capsules.__doc__))
    found.figures |= capsule_figures(log)


SUBJECTS: dict[Subject, Callable[[Settings, Log, Found], Any]] = {
    "workers": _workers,
    "shapes": _shapes,
    "overhead": _overhead,
    "zero": _zero,
    "planner": _planner,
    "capsules": _capsules,
}
assert tuple(SUBJECTS) == get_args(Subject)
