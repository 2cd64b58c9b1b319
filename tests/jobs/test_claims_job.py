"""jobs/claims.py as a user runs it: smoke with launched runs, and refusals before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_helpers import run_job_file


@pytest.mark.slow
def test_smoke_does_all_experiments(tmp_path: Path) -> None:
    done = run_job_file("claims.py", "--smoke", "--root", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "claims" / "claims.json").read_text())
    assert "printed digits" in found["note"]
    assert len(found["experiments"]) == 10
    assert len(found["runs"]) == 8
    assert "viewpoints_azimuth: not run" in done.stdout


def test_options_are_refused_in_one_line(tmp_path: Path) -> None:
    done = run_job_file("claims.py", "--fractions", "1", "200", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: fractions=(1.0, 200.0): are not distinct numbers above 0")
    assert len(done.stderr.splitlines()) == 1
