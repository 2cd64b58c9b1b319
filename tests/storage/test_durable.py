"""Files that are written whole or not at all, and symbolic links that are never followed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from capsdist.storage.durable import open_lock_file, remove_file, remove_tree, replacing, write_durably


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_written_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for content in (b"old", b"new and longer"):
        write_durably(path, content)
        assert path.read_bytes() == content
    assert names(tmp_path) == {"result.json"}


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_durably(tmp_path / "open", b"")
        write_durably(tmp_path / "secret", b"", mode=0o600)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "overview.png"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            assert temporary.suffix == ".png"
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"overview.png"}


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"kept")
    link = tmp_path / "link"
    link.symlink_to(target)
    write_durably(link, b"new")
    assert (link.is_symlink(), link.read_bytes(), target.read_bytes()) == (False, b"new", b"kept")


def test_removing_never_follows_a_link(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "manifest.json").write_bytes(b"{}")
    link = tmp_path / "step_00000004"
    link.symlink_to(archive)
    remove_file(link / "manifest.json")
    remove_tree(link, first="manifest.json")
    assert not link.is_symlink()
    assert names(archive) == {"manifest.json"}
    (archive / "inner").symlink_to(tmp_path)
    remove_tree(archive, first="manifest.json")
    assert names(tmp_path) == set()


def test_a_lock_file_is_no_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"kept")
    (tmp_path / ".lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        open_lock_file(tmp_path / ".lock")
    os.close(open_lock_file(tmp_path / ".other"))
    assert target.read_bytes() == b"kept"


def test_a_file_is_on_disk_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, flushed: Callable[[Path], list[tuple[str, bool]]]
) -> None:
    path = tmp_path / "state.json"
    seen = flushed(path)
    write_durably(path, b"new")
    [(first, before), second] = seen
    assert (first.startswith(".state."), before, second) == (True, False, (tmp_path.name, True))
