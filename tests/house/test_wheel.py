"""What users install: the package and its READMEs, and none of what injects faults or tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", "77", reason="a wheel is built with setuptools 77 or newer")
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


def test_the_wheel_holds_the_package_and_nothing_of_the_tests(repo: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo / name, source)
    for name in ("capsdist", "tests", "jobs", "data_prep"):
        shutil.copytree(repo / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "records"))
    env = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    done = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = {str(path.relative_to(repo)) for path in repo.glob("capsdist/**/*.py")}
    assert files <= names
    assert {name.split("/")[0] for name in names} == {"capsdist"}
    harness = {path.name for path in repo.glob("tests/faults/*.py")} - {"__init__.py"}
    assert harness
    assert not harness & {Path(name).name for name in names}
