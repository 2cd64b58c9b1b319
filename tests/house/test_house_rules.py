"""Rules of the house that no linter knows: file sizes, messages of exceptions, folders, versions."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import capsdist

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {
    ".ci", ".gitignore", ".rayignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "SECURITY.md",
    "capsdist", "cluster", "constraints-cpu.txt", "data_prep", "jobs", "pyproject.toml", "tests",
}  # fmt: skip


def tracked(*patterns: str) -> list[Path]:
    """Files that belong to the checkout, or every such file where there is no git (an unpacked archive)."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def message_faults(source: str) -> list[int]:
    """Lines that raise an exception with several positional strings: it would print as a tuple."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and sum(isinstance(argument, ast.Constant | ast.JoinedStr) for argument in node.exc.args) > 1
    ]


def test_exceptions_have_one_message() -> None:
    faults = {str(path): lines for path in tracked("*.py") if (lines := message_faults(path.read_text()))}
    assert not faults


def test_the_message_rule_catches_a_tuple() -> None:
    assert message_faults('raise ValueError("a is", "wrong")') == [1]


def test_python_files_have_one_subject_and_at_most_350_lines() -> None:
    assert {str(p): n for p in tracked("*.py") if (n := len(p.read_text().splitlines())) > 350} == {}


def test_jobs_have_at_most_60_lines() -> None:
    jobs = tracked("jobs/*.py")
    assert jobs
    assert {p.name: n for p in jobs if (n := len(p.read_text().splitlines())) > 60} == {}


def test_top_level_is_fixed() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} <= TOP_LEVEL


def test_no_script_is_named_like_a_package_it_would_shadow() -> None:
    names = {"webdataset", "ray", "torch", "deepspeed", "fsspec", "s3fs", "tune", "capsdist"}
    assert not names & {path.stem for folder in ("jobs", "data_prep") for path in tracked(f"{folder}/*.py")}


@pytest.mark.parametrize("name", [".venv", "data", "runs", "build", "dist"])
@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("/tmp")])
def test_what_is_made_here_is_ignored_as_folder_and_as_symlink(name: str, make, tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    make(tmp_path / name)
    if (tmp_path / name).is_dir() and not (tmp_path / name).is_symlink():
        (tmp_path / name / "file").touch()
    words = ["git", "status", "--porcelain", "--untracked-files=all"]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, text=True).stdout == "?? .gitignore\n"


def test_no_large_file_is_tracked() -> None:
    assert {str(path) for path in tracked() if path.stat().st_size > 1_000_000} == set()


def test_every_folder_of_code_says_why_it_exists() -> None:
    folders = {path.parent for path in tracked("capsdist/*.py")} - {ROOT / "capsdist/config/presets"}
    folders |= {ROOT / name for name in ("jobs", "data_prep")}
    assert {
        str(folder.relative_to(ROOT)) for folder in folders if not (folder / "README.md").exists()
    } == set()


def test_relative_links_of_the_documents_lead_somewhere() -> None:
    broken = {
        f"{path.relative_to(ROOT)}: {target}"
        for path in tracked("*.md")
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text())
        if "://" not in target and not (path.parent / target).exists()
    }
    assert broken == set()


def test_checkpoints_are_named_as_they_are() -> None:
    """`evaluate.py` and a continued run look for step_ and eight digits."""
    wrong = re.compile(r"step-(?!0\d{3}\b)[{\d]|step_\d{1,7}\b|step_\d{9,}")
    files = [path for path in tracked("*.md", "*.py") if ROOT / "tests" not in path.parents]
    faults = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files
        for match in wrong.finditer(path.read_text())
    }
    assert faults == set()


def test_the_version_has_a_changelog_heading() -> None:
    assert f"## [{capsdist.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{capsdist.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_documents_stand_alone() -> None:
    pattern = re.compile(r"\.\./shared|/wor[k]/|TODO|FIXME")
    faults = [
        str(path)
        for path in tracked("*.md", "*.py", "*.toml", "Makefile")
        if pattern.search(path.read_text())
    ]
    assert faults == [str(Path(__file__))]  # the pattern itself stands here
