"""Measure the seconds from a crash of a worker, and from a lost machine, to the next optimizer step."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import tyro

from capsdist.bench.record import write_record
from capsdist.bench.recovery import FAULTS, recovery_figures

RECORDS = Path(__file__).parent / "records"


def main(repeats: int = 3, fast_health: bool = False, goals: bool = False, record: bool = False) -> int:
    """Kill a worker, then a Ray node, of a run on 2 nodes with a spare; the last line is one JSON object.

    Exit status 1 if a run lost or doubled samples or ended with other bits than the undisturbed one.

    Args:
        repeats: Runs, each with both faults; the medians count.
        fast_health: Have Ray's head notice dead nodes sooner, as cluster/onprem.yaml sets it.
        goals: One run only.
        record: Write a record below jobs/records.
    """
    log: list[str] = []
    began = time.monotonic()

    def say(text: str) -> None:
        log.append(f"{time.monotonic() - began:6.1f} s  {text}")
        print(log[-1], flush=True)

    found = recovery_figures(repeats=1 if goals else repeats, fast_health=fast_health, say=say)
    counts = {name: value for name, value in found.items() if isinstance(value, int)}
    seconds = {name: value for name, value in found.items() if isinstance(value, list)}
    figures = {name: round(statistics.median(value), 1) for name, value in seconds.items()} | counts
    last_line = json.dumps(figures)
    if record:
        what = "recovery-fast-health" if fast_health else "recovery"
        config = {"faults": FAULTS, "fast_health": fast_health, "seconds_of_runs": seconds}
        print(
            "recorded in",
            write_record(RECORDS, what, config=config, figures=figures, log="\n".join([*log, last_line, ""])),
        )
    print(last_line)
    return int(any(counts.values()))


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
