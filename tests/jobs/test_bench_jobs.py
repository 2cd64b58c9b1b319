"""The commands that run training into faults: what they print, and that nothing was lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_helpers import run_job_file

from faults.campaign import passed

FIGURES = {"faults_injected": 9, "samples_lost": 0, "samples_doubled": 0, "runs_diverged": 0}


@pytest.mark.slow
def test_faults_cost_nothing(tmp_path: Path) -> None:
    done = run_job_file("bench_faults.py", "--goals", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-5:-1] == [f"{name} {value}" for name, value in FIGURES.items()]
    assert FIGURES.items() <= json.loads(lines[-1]).items()


@pytest.mark.slow
def test_crashes_are_recovered_from(tmp_path: Path) -> None:
    done = run_job_file("bench_recovery.py", "--goals", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["worker_s"] > 0
    assert figures["host_s"] > 0


def test_faults_that_cost_nothing_pass() -> None:
    assert passed(FIGURES, 9)


@pytest.mark.parametrize("name", FIGURES)
def test_a_fault_that_did_not_strike_or_cost_something_does_not_pass(name: str) -> None:
    assert not passed(FIGURES | {name: FIGURES[name] + 1}, 9)


def test_a_campaign_without_faults_is_refused(tmp_path: Path) -> None:
    done = run_job_file("bench_faults.py", "--faults", "0", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: faults=0 must be at least 1; raise --faults\n"
