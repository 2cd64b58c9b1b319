"""The floors hold: import-linter's contracts are kept, and a broken floor is noticed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package below `root`."""
    program = Path(sys.executable).with_name("lint-imports")
    env = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [program, "--no-cache"], cwd=root, env=env, capture_output=True, text=True, check=False
    )


def copy_of_the_package(folder: Path) -> Path:
    """A copy of the package and its contracts that a test may break."""
    shutil.copytree(ROOT / "capsdist", folder / "capsdist", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_contracts_are_kept() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


def test_a_broken_floor_is_noticed(tmp_path: Path) -> None:
    root = copy_of_the_package(tmp_path)
    with (root / "capsdist/ops/__init__.py").open("a") as file:
        file.write("\nimport capsdist.models  # noqa\n")
    result = lint_imports(root)
    assert result.returncode != 0
    assert "capsdist.ops" in result.stdout
