"""Count what scripted faults cost: samples lost or trained on twice, runs that end with other bits."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import tyro

from capsdist.bench.record import last_line, write_record
from capsdist.console import run_program

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # `faults` is no part of the package
from faults.campaign import fault_figures, passed
from faults.random_faults import SAMPLES, random_faults
from faults.tiny import CHECKPOINT_EVERY, WORKERS

RECORDS = Path(__file__).parent / "records"
GOALS = ("faults_injected", "samples_lost", "samples_doubled", "runs_diverged")


def main(faults: int = 12, seed: int = 0, goals: bool = False, record: bool = False) -> int:
    """Run training on 2 workers into scripted faults; the last line is one JSON object.

    Exit status 1 if a fault did not strike, or if samples were lost or doubled or a run diverged.

    Args:
        faults: Faults to inject, in runs of at most 6; 15 to 20 s each.
        seed: Seed that decides which faults, where and in which order.
        goals: Nine faults of seven kinds in three runs, always the same.
        record: Write a record below jobs/records.
    """
    if faults < 1:
        print(f"error: faults={faults} must be at least 1; raise --faults", file=sys.stderr)
        return 2
    if goals:
        scripts = list(SAMPLES)
    else:
        scripts = random_faults(seed, faults, ranks=WORKERS, checkpoint_every=CHECKPOINT_EVERY)
    lines: list[str] = []
    began = time.monotonic()

    def log(text: str) -> None:
        lines.append(f"{time.monotonic() - began:6.1f} s  {text}")
        print(lines[-1], flush=True)

    figures = fault_figures(scripts, log)
    last_lines = [*(f"{name} {figures[name]}" for name in GOALS), last_line(figures)]
    if record:
        config = {"seed": None if goals else seed, "num_workers": WORKERS, "scripts": scripts}
        what, text = "faults" if goals else "faults-campaign", "\n".join([*lines, *last_lines, ""])
        folder = write_record(RECORDS, what, config=config, figures=figures, log=text)
        print("recorded in", folder)
    print("\n".join(last_lines))
    return 0 if passed(figures, sum(map(len, scripts))) else 1


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main)))
