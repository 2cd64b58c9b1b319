"""Start-up is measured on real interpreters, and a job that refuses is no measurement."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from capsdist.bench.startup import startup_figures


def test_figures_of_a_real_job(repo: Path) -> None:
    figures = startup_figures(repo / "jobs/train_mnist.py", repeats=1)
    assert set(figures) == {"python_s", "import_s", "check_s"}
    assert all(value > 0 for value in figures.values())


def test_a_job_that_fails_is_no_measurement(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text("raise SystemExit(2)")
    with pytest.raises(subprocess.CalledProcessError):
        startup_figures(job, repeats=1)
