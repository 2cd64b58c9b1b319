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
        record: Write a record with plots below jobs/records.
        subjects: What is measured.
        rounds: Blocks of steps of each arm of the study of workers, of which the median counts.
        blocks: Pairs of blocks of the run and of bare steps.
    """
    rounds, blocks, lines = 10 if goals else rounds, 24 if goals else blocks, list[str]()
    settings = Settings(goals, this_machine().cores, rounds, blocks)

    def log(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    found = measure(settings, subjects, log)
    figures = {name: float(f"{value:.4g}") for name, value in found.figures.items()}
    if goals:
        log(goals_table(SCALING_ROWS, figures))
    line = last_line(figures)
    if record:
        config = asdict(settings) | {"subjects": subjects}
        points = {f"points_{name}": [*map(asdict, each)] for name, each in found.points.items()}
        text = "\n".join([*lines, line, ""])
        folder = write_record(
            RECORDS, "scaling", config=config, figures=figures | {"points": points}, log=text
        )
        save_plots(folder, found.points)
        print("recorded in", folder)
    print(line)


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main) or 0))
