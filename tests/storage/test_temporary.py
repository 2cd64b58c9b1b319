"""Temporary folders: gone at the end, gone at the next start after a kill, and no others are touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from capsdist.storage.temporary import remove_stale_folders, temporary_folder

HOLDER = """
import sys, time
from pathlib import Path
from capsdist.storage.temporary import temporary_folder
with temporary_folder(parent=Path(sys.argv[1])) as folder:
    (folder / "weights").write_bytes(b"1")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_a_folder_is_private_and_removed_at_the_end(tmp_path: Path) -> None:
    with temporary_folder(parent=tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_bytes(b"")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_living_process_stays_and_that_of_a_killed_one_goes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        remove_stale_folders(tmp_path)
        assert (folder / "weights").exists()
        holder.send_signal(signal.SIGKILL)
    assert (folder / "weights").exists()
    remove_stale_folders(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_folders_with_such_a_name_are_removed_and_no_link_is_followed(tmp_path: Path) -> None:
    parent, target = tmp_path / "parent", tmp_path / "target"
    for folder in (parent / "capsdist-01234567", parent / "capsdist-0123456789.tmp", target):
        folder.mkdir(parents=True)
        (folder / "kept").write_bytes(b"")
    (parent / "capsdist-abcdefgh.tmp").symlink_to(target)
    (parent / "capsdist-abcdefg_.tmp").write_bytes(b"a file")
    left = parent / "capsdist-00000000.tmp"
    left.mkdir()
    (left / "link").symlink_to(target)
    remove_stale_folders(parent)
    names = {"capsdist-01234567", "capsdist-0123456789.tmp", "capsdist-abcdefgh.tmp", "capsdist-abcdefg_.tmp"}
    assert set(os.listdir(parent)) == names
    assert os.listdir(target) == ["kept"]


def test_a_folder_can_be_had_under_the_path_of_another_machine(tmp_path: Path) -> None:
    with temporary_folder(parent=tmp_path) as folder:
        path = folder
        with pytest.raises(FileExistsError), temporary_folder(at=path):
            pass
    with temporary_folder(at=path) as folder:
        assert folder == path
        remove_stale_folders(tmp_path)
        assert path.exists()
    assert list(tmp_path.iterdir()) == []
