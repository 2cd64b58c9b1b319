"""Measure how training scales: over workers, with sizes, over bare PyTorch, and with ZeRO-3."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from capsdist.bench.record import last_line
from capsdist.bench.scaling_aims import SCALING_ROWS
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
        whole |= measure(subject, settings, RECORDS if record else None)
    if goals:
        print(goals_table(SCALING_ROWS, whole))
    print(last_line(whole))


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main) or 0))
