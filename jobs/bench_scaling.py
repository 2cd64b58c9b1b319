"""Measure how training scales: over workers, with sizes, over bare PyTorch, and with ZeRO-3."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import tyro

from capsdist.bench.record import last_line, write_record
from capsdist.bench.scaling_aims import SCALING_ROWS
from capsdist.bench.scaling_plots import save_plots
from capsdist.bench.scaling_subjects import SUBJECTS, Settings, Subject, measure
from capsdist.bench.tables import goals_table
from capsdist.console import run_program
from capsdist.launch.preflight import this_machine

RECORDS = Path(__file__).parent / "records"


def main(
    goals: bool = False, record: bool = False, subjects: tuple[Subject, ...] = tuple(SUBJECTS),
    rounds: int = 25, blocks: int = 40,
) -> None:  # fmt: skip
    """Measure how training scales; the last line is one JSON object.

    Args:
        goals: Half of the sizes, 10 rounds, 24 pairs of blocks, and a table of goals.
        record: Write a record of each subject, with plots, below jobs/records.
        subjects: What is measured.
        rounds: Blocks of steps of each arm of the study of workers, of which the median counts.
        blocks: Pairs of blocks of the run and of bare steps.
    """
    rounds, blocks = 10 if goals else rounds, 24 if goals else blocks
    settings, whole = Settings(goals, this_machine().cores, rounds, blocks), dict[str, float]()
    for subject in subjects:
        whole |= _measure(subject, settings, record=record)
    if goals:
        print(goals_table(SCALING_ROWS, whole))
    print(last_line(whole))


def _measure(subject: Subject, settings: Settings, *, record: bool) -> dict[str, float]:
    """Return the figures of a subject; with `record` write its record."""
    lines = list[str]()

    def log(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    found = measure(settings, [subject], log)
    figures = {name: float(f"{value:.4g}") for name, value in found.figures.items()}
    if record and figures:
        points = {f"points_{name}": [*map(asdict, each)] for name, each in found.points.items()}
        folder = write_record(
            RECORDS,
            f"scaling-{subject}",
            config=asdict(settings),
            figures=figures | ({"points": points} if points else {}),
            log="\n".join([*lines, ""]),
            command=f"python jobs/bench_scaling.py --subjects {subject}" + " --goals" * settings.goals,
        )
        save_plots(folder, found.points)
        print("recorded in", folder)
    return figures


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main) or 0))
