"""Start the jobs of the paper, each table, figure and claim: their smoke forms, one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capsdist.console import DONE, FAILED
from capsdist.storage.place import is_url

__all__ = ["Outcome", "commands", "run_smoke", "table"]

_OTHERS = ("table1", "ensemble_cifar", "depth_curve", "compare_routings", "figures", "claims")
_SHOWN = 20  # last lines of a job that fails
_PLACES = ("CAPSDIST_DATA_ROOT", "CAPSDIST_DATA")


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its seconds, exit status, and the last line that it printed."""

    name: str
    seconds: float
    status: int
    last: str


def commands(jobs: Path) -> list[Path]:
    """Return the jobs of the paper in the folder `jobs`: all that train, then those of many networks."""
    return [*sorted(jobs.glob("train_*.py")), *(jobs / f"{name}.py" for name in _OTHERS)]


def run_smoke(jobs: Sequence[Path]) -> int:
    """Run the smoke form of each of `jobs`, print a line for each and a table; return the exit status.

    They run in a temporary folder, which is deleted afterwards. Packed sets are looked for where
    CAPSDIST_DATA_ROOT says, else in `data` of this folder.
    """
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="reproduce-", ignore_cleanup_errors=True) as folder:
        for job in jobs:
            print(f"{job.stem} ...", flush=True)
            outcomes.append(_run(job, folder))
            print(f"{job.stem}: {outcomes[-1].last}", flush=True)
    print(table(outcomes))
    return DONE if all(outcome.status == DONE for outcome in outcomes) else FAILED


def table(outcomes: Sequence[Outcome]) -> str:
    """Return a line for each job: its name, seconds, and whether it passed."""
    rows = [("job", "seconds", "result")]
    for one in outcomes:
        result = "passed" if one.status == DONE else f"FAILED, exit status {one.status}"
        rows.append((one.name, f"{one.seconds:.1f}", result))
    rows.append(("all", f"{sum(one.seconds for one in outcomes):.1f}", _total(outcomes)))
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}}  {seconds:>7}  {result}" for name, seconds, result in rows)


def _total(outcomes: Sequence[Outcome]) -> str:
    passed = sum(one.status == DONE for one in outcomes)
    return f"{passed} of {len(outcomes)} passed; smoke, no result"


def _run(job: Path, folder: str) -> Outcome:
    """Run one job in `folder`; its output is shown where it fails."""
    env = {**os.environ, "CAPSDIST_DATA_ROOT": os.environ.get("CAPSDIST_DATA_ROOT") or "data"}
    for name in _PLACES:
        if (place := env.get(name)) and not is_url(place):
            env[name] = os.path.abspath(place)
    start = time.monotonic()
    command = [sys.executable, str(job.resolve()), "--smoke"]
    done = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    lines = done.stdout.rstrip().splitlines() or [""]
    if done.returncode != DONE:
        print("\n".join(lines[-_SHOWN:]), file=sys.stderr, flush=True)
    return Outcome(job.stem, time.monotonic() - start, done.returncode, lines[-1])
