"""What the project imports is declared in pyproject.toml and pinned in constraints-cpu.txt."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("capsdist", "jobs", "data_prep", "cluster")
SIBLINGS = {path.stem for folder in FOLDERS for path in (ROOT / folder).glob("*.py")} | {"capsdist", "tests"}
SIBLINGS |= {path.stem for path in (ROOT / "tests").iterdir()}
OF_ANOTHER_PYTHON = {"litdata"}  # a script for an environment that has it
EXTRAS = ("quickstart", "zero", "tune", "clusters", "wandb", "mlflow", "export")


def name_of(requirement: str) -> str:
    """The name of a requirement's package as an index compares names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]


def pins() -> dict[str, str]:
    """Package and version of every line of constraints-cpu.txt."""
    lines = (ROOT / "constraints-cpu.txt").read_text().splitlines()
    return {name_of(line): line.partition("==")[2] for line in lines if line and not line.startswith("#")}


def imported_modules(source: str) -> set[str]:
    """Top-level modules that a text imports, wherever it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def third_party() -> set[str]:
    """Packages of others that the project imports."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    modules = set().union(*(imported_modules(path.read_text()) for path in files))
    modules -= sys.stdlib_module_names | SIBLINGS | OF_ANOTHER_PYTHON
    owners = metadata.packages_distributions()
    return {name_of(owners[module][0]) for module in modules}


def test_every_direct_dependency_is_pinned() -> None:
    assert {name_of(each) for each in PROJECT["dependencies"]} - set(pins()) == set()


def test_everything_imported_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = {name_of(each) for each in PROJECT["dependencies"]}
    optional = {name_of(each) for extra in EXTRAS for each in extras[extra]} | {"triton"}  # torch brings it
    assert third_party() - declared - optional == set()


def test_a_pin_is_what_is_installed_and_wanted() -> None:
    wanted = {name_of(each) for each in PROJECT["dependencies"]}
    for name, version in pins().items():
        assert name in wanted, f"{name} is pinned, but no dependency"
        assert metadata.version(name).partition("+")[0] == version


def test_an_import_is_noticed_wherever_it_stands() -> None:
    source = "import os.path, jsonschema\ndef f():\n    from botocore.config import Config\nfrom . import x\n"
    assert imported_modules(source) == {"os", "jsonschema", "botocore"}
