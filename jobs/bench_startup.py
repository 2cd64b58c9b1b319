"""Measure how long `import capsdist` and a job's `--check` take in a fresh interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from capsdist.bench.record import last_line, write_record
from capsdist.bench.startup import startup_figures
from capsdist.console import run_program

JOBS = Path(__file__).resolve().parent


def main(goals: bool = False, record: bool = False) -> None:
    """Measure start-up; the last line is one JSON object.

    Args:
        goals: 5 starts of each instead of 25.
        record: Write a record below jobs/records.
    """
    config = {"job": "jobs/train_cifar.py", "repeats": 5 if goals else 25}
    found = startup_figures(JOBS / "train_cifar.py", repeats=5 if goals else 25)
    figures = {name: round(value, 3) for name, value in found.items()}
    line = last_line(figures)
    if record:
        folder = write_record(JOBS / "records", "startup", config=config, figures=figures, log=line + "\n")
        print("recorded in", folder)
    print(line)


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main) or 0))
