"""Measure the seconds from a crash of a worker, and from a lost machine, to the next optimizer step."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import tyro

from capsdist.bench.record import last_line, write_record
from capsdist.console import run_program

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # `faults` is no part of the package
from faults.recovery import FAULTS, recovery_figures

RECORDS = Path(__file__).parent / "records"


def main(repeats: int = 3, goals: bool = False, record: bool = False) -> int:
    """Kill a worker, then a Ray node, of a run on 2 nodes with a spare; the last line is one JSON object.

    Exit status 1 if a run lost or doubled samples or ended with other bits than the undisturbed one.

    Args:
        repeats: Runs, each with both faults; the medians count.
        goals: One run only.
        record: Write a record below jobs/records.
    """
    lines: list[str] = []
    began = time.monotonic()

    def log(text: str) -> None:
        lines.append(f"{time.monotonic() - began:6.1f} s  {text}")
        print(lines[-1], flush=True)

    found = recovery_figures(repeats=1 if goals else repeats, log=log)
    counts = {name: value for name, value in found.items() if isinstance(value, int)}
    seconds = {name: value for name, value in found.items() if isinstance(value, list)}
    figures = {
        **{name: round(statistics.median(value), 1) for name, value in seconds.items()},
        **counts,
        "of_runs": {name: [round(each, 1) for each in value] for name, value in seconds.items()},
    }
    line = last_line(figures)
    if record:
        config, text = {"faults": FAULTS, "repeats": len(seconds["host_s"])}, "\n".join([*lines, line, ""])
        folder = write_record(RECORDS, "recovery", config=config, figures=figures, log=text)
        print("recorded in", folder)
    print(line)
    return int(any(counts.values()))


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main)))
