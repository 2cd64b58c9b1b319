"""`--check` of a run on foreign tar files: it asks for no packed training split, and reads no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from foreign_tars import write_tars
from job_helpers import TINY_FLAGS, write_tiny

from capsdist.cli import run_job
from capsdist.console import DONE, INVALID


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with tar files, and a packed split to validate on, but none to train on."""
    write_tiny(tmp_path)
    shutil.rmtree(tmp_path / "tiny" / "train")
    write_tars(tmp_path / "tars", 48, tars=2, shape=(12, 12, 1))
    return tmp_path


def check(root: Path, *options: str) -> int:
    flags = [
        *TINY_FLAGS, f"--data.root={root}", f"--train.storage={root}", "--data.last-batch=short",
        "--data.reader=webdataset", f"--data.urls={root}/tars/{{0..1}}.tar", "--data.num-samples=48",
    ]  # fmt: skip
    return run_job("A job.", ["mnist_paper"], argv=[*flags, *options, "--check"])


@pytest.mark.parametrize("options", [(), ("--data.name=",)])
def test_valid_without_a_training_split(root, capsys, options):
    assert check(root, *options) == DONE
    assert capsys.readouterr().err == ""


def test_the_split_to_validate_on_is_looked_for(root, capsys):
    shutil.rmtree(root / "tiny" / "test")
    assert check(root) == DONE
    warning = 'to a packed set, or set --data.name "" for a run without validation'
    assert warning in capsys.readouterr().err
    assert check(root, "--data.name=") == DONE
    assert capsys.readouterr().err == ""


def test_missing_tar_files_are_a_warning(root, capsys):
    (root / "tars" / "1.tar").unlink()
    assert check(root) == DONE
    assert f"warning: {root}/tars/1.tar: is not there; correct --data.urls" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--data.urls=pipe:cat x.tar", "error: data.urls='pipe:...': would run a command of the shell"),
        ("--data.urls={0..9.tar", "has an opening or closing brace too many"),
        ("--data.urls=s3://key:secret@b/x.tar", "credentials do not belong in a URL"),
        ("--train.num-workers=3", "names 2 tar files for train.num_workers=3"),
        ("--model.from-data=true", "model.from_data=True: needs an index"),
    ],
)
def test_refusals_are_one_line(root, capsys, option, text):
    assert check(root, option) == INVALID
    told = capsys.readouterr().err
    assert text in told
    assert "secret" not in told
