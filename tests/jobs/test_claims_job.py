"""jobs/claims.py as a user runs it: --check, --smoke through Ray, and refusals before anything starts."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from job_helpers import run_job_file

from capsdist.data.sets.few import pack_few


@pytest.mark.slow
def test_smoke_trains_one_grid_and_does_all_experiments(tmp_path: Path, short_tmp: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "CAPSDIST_DATA"}  # no real data
    env["RAY_TMPDIR"] = str(short_tmp)
    done = run_job_file("claims.py", "--smoke", "--root", str(tmp_path), cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("study claims: 4 runs of 2 steps; ")
    assert "grid claims: 4 cells; " in done.stdout
    assert "made-up images in files of the original format" in done.stdout
    assert len([line for line in lines if line.startswith("## ")]) == 1 + 10  # claims and experiments
    assert "- viewpoints_azimuth: not run: no data (" in done.stdout
    assert re.fullmatch(r"12 claims: .*; 2 experiments not run", lines[-1])
    assert list(tmp_path.iterdir()) == []


def test_check_says_what_there_is_to_train_and_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "data"
    flags = ("--check", "--root", str(root), "--fractions", "10", "100", "--seeds", "3", "5", "--epochs", "4")
    done = run_job_file("claims.py", *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "capsdist pack mnist" in done.stderr
    pack_few("mnist", ("train", "test"), str(root), str(root))
    there = sorted(root.rglob("*"))
    done = run_job_file("claims.py", *flags, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("study claims: 8 runs of 3 steps; ")
    assert "viewpoints_elevation: not run: no data (" in lines[2]
    names = lines[-1].removeprefix("configuration is valid: 8 cells: ").split()
    assert names == [
        f"mnist-mini-{network}-{part}-seed-{seed}"
        for seed in (3, 5) for part in (10, 100) for network in ("capsnet", "baseline")
    ]  # fmt: skip
    assert (sorted(root.rglob("*")), list(tmp_path.iterdir())) == (there, [root])


def test_options_are_refused_in_one_line(tmp_path: Path) -> None:
    done = run_job_file("claims.py", "--fractions", "1", "200", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: fractions=(1.0, 200.0): are not distinct numbers above 0")
    assert len(done.stderr.splitlines()) == 1
