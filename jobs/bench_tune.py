"""Search over routing depth and class dimension on digits, kill the search in its middle, start it again.

Command: python jobs/bench_tune.py --goals
Expected time: 8 minutes on 2 cores with --goals; without, an hour (not measured): the preset's own network.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from capsdist.bench.record import last_line, write_record
from capsdist.bench.searching import PRESET, SMALL, SPACE, killed_search
from capsdist.console import run_program

JOBS = Path(__file__).resolve().parent
LONG = ("trials", "command")  # in the record only


def main(goals: bool = False, record: bool = False) -> int:
    """Measure a search that is killed; the last line is one JSON object.

    Exit status 1 if a trial that had ended was lost or run again.

    Args:
        goals: A network of 29 % of the preset's parameters instead of the preset's own; 8 minutes.
        record: Write a record below jobs/records.
    """
    config = {
        "preset": PRESET,
        "options": [*(SMALL if goals else []), *SPACE],
        "num_trials": 12,
        "kill_after": 5,
        "limit_s": 1200 if goals else 7200,
    }
    print("a search, killed, and again; what they print comes at the end", flush=True)
    figures, log = killed_search(
        JOBS / "tune_routing.py",
        JOBS.parent / "data_prep" / "pack_digits.py",
        small=goals,
        num_trials=config["num_trials"],
        kill_after=config["kill_after"],
        limit_s=config["limit_s"],
    )
    print(log)
    if record:
        print("recorded in", write_record(JOBS / "records", "tune", config=config, figures=figures, log=log))
    print(last_line({name: value for name, value in figures.items() if name not in LONG}))
    return int(figures["trials_lost"] + figures["trials_run_again"] > 0)


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main)))
