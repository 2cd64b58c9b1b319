"""The subjects of the scaling study, by name; what cannot be measured is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from capsdist.bench import (
    planner_check,
    scaling_capsules,
    scaling_overhead,
    scaling_shapes,
    scaling_workers,
    scaling_zero,
)
from capsdist.bench.record import write_record
from capsdist.bench.scaling_capsules import capsule_figures
from capsdist.bench.scaling_overhead import overhead_figures
from capsdist.bench.scaling_plots import save_plots
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


def measure(subject: Subject, settings: Settings, records: Path | None) -> dict[str, float]:
    """Return the figures of `subject`, as records hold them; print what is measured or left out.

    records: folder in which a record is written, with plots; None: it is not.

    Raises:
        CapsdistError: as the functions that measure; RunError: the record cannot be written.
    """
    lines = list[str]()

    def log(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    found = Found()
    SUBJECTS[subject](settings, log, found)
    figures = {name: float(f"{value:.4g}") for name, value in found.figures.items()}
    for name, value in figures.items():
        log(f"{name} {value:.4g}")
    if records and figures:
        sizes = "--goals" if settings.goals else f"--rounds {settings.rounds} --blocks {settings.blocks}"
        points = {f"points_{name}": [*map(asdict, each)] for name, each in found.points.items()}
        folder = write_record(
            records,
            f"scaling-{subject}",
            config=asdict(settings),
            figures=figures | ({"points": points} if points else {}),
            log="\n".join([*lines, ""]),
            command=f"python jobs/bench_scaling.py --subjects {subject} {sizes} --record",
        )
        save_plots(folder, found.points)
        print("recorded in", folder)
    return figures


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
