"""Runs that were killed before they began leave no folder for ever; all others stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from capsdist.errors import RunError
from capsdist.storage.durable import open_lock_file
from capsdist.train.cluster import RunFolder
from capsdist.train.cluster.leftovers import remove_left_behind, removed_if_unbegun
from capsdist.train.cluster.locks import _take


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A folder of runs: one that was killed before it began, and others that must stay."""
    for name in ("killed", "held", "trained", "foreign", "young"):
        run = RunFolder(tmp_path / name)
        run.create()
        with run.lock():
            pass
    (tmp_path / "trained" / "config.json").write_text("{}")
    (tmp_path / "foreign" / ".lock").write_text("of another program")
    for name in ("killed", "held", "trained", "foreign"):
        os.utime(tmp_path / name / ".lock", (time.time() - 3600,) * 2)
    (tmp_path / "link").symlink_to(tmp_path / "killed")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_a_lock_whose_file_was_removed_holds_nothing(storage: Path) -> None:
    path = storage / "killed" / ".lock"
    descriptor = open_lock_file(path)
    with removed_if_unbegun(RunFolder(storage / "killed").files):
        pass
    assert not path.exists()
    with pytest.raises(RunError, match="this run is being trained by another process"):
        _take(descriptor, path, "killed")
    os.close(descriptor)


def test_a_pipe_in_the_place_of_a_lock_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    os.mkfifo(tmp_path / "foreign" / ".lock")
    with removed_if_unbegun(RunFolder(tmp_path / "foreign").files):
        pass
    with (
        pytest.raises(RunError, match=r"\.lock cannot be locked \(Not a regular file\); remove it"),
        RunFolder(tmp_path / "foreign").lock(),
    ):
        pass


def test_only_runs_that_have_not_begun_and_that_nobody_holds_go(storage: Path) -> None:
    held = RunFolder(storage / "held")
    with held.lock():
        os.utime(storage / "held" / ".lock", (time.time() - 3600,) * 2)
        remove_left_behind(RunFolder(storage / "new").files)
        names = {path.name for path in storage.iterdir()}
        assert names == {"held", "trained", "foreign", "young", "link", "empty"}
        with removed_if_unbegun(held.files):
            pass
        assert (storage / "held").exists()
    with removed_if_unbegun(held.files), held.lock():
        pass
    assert not (storage / "held").exists()
    for name in ("trained", "foreign", "empty", "none"):
        with removed_if_unbegun(RunFolder(storage / name).files):
            pass
    assert {path.name for path in storage.iterdir()} == {"trained", "foreign", "young", "link", "empty"}
