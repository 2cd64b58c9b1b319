"""Every benchmark job takes --goals, so that one command measures all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

JOBS = sorted((Path(__file__).resolve().parents[2] / "jobs").glob("bench_*.py"))


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_takes_goals_and_record(job: Path) -> None:
    shown = subprocess.run([sys.executable, job, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--goals" in shown
    assert "--record" in shown
