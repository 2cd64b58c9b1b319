"""`LocalFolder`: what every folder does, and what links, full disks and killed processes do to it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from folder_suite import *  # noqa: F403
from folder_suite import digest, put

from capsdist.errors import DataError, DocumentError, RunError
from capsdist.storage import Folder, open_folder
from capsdist.storage.local_folder import LocalFolder
from capsdist.storage.place import folder_and_name


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty folder."""
    (tmp_path / "folder").mkdir()
    return open_folder(tmp_path / "folder")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file outside of the folder, which nothing may touch."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "marker").write_bytes(b"mine")
    return tmp_path / "target" / "marker"


def names(folder: Folder) -> list[str]:
    assert folder.local is not None
    return sorted(path.name for path in folder.local.iterdir())


@pytest.mark.parametrize("make", [str, Path, lambda path: f"file://{path}"])
def test_places_of_every_kind(folder: Folder, make) -> None:
    folder.write("x", b"1")
    assert open_folder(make(folder.local)).read("x") == b"1"


@pytest.mark.parametrize(
    ("file", "folder", "name"),
    [
        ("a.json", ".", "a.json"),
        (Path("x/y/a.json"), "x/y", "a.json"),
        ("/a.json", "/", "a.json"),
        ("s3://bucket/x/a.json?region=eu-west-1", "s3://bucket/x?region=eu-west-1", "a.json"),
        ("file:///x/a.json", "file:///x", "a.json"),
    ],
)
def test_a_file_has_a_folder_and_a_name(file: str | Path, folder: str, name: str) -> None:
    assert folder_and_name(file) == (folder, name)


@pytest.mark.parametrize("error", [DataError, RunError])
@pytest.mark.parametrize(
    ("place", "message"), [("gs://bucket/x", "gs:// is not supported"), (Path("s3://bucket"), "lost a slash")]
)
def test_other_places_are_refused(place, message: str, error) -> None:
    with pytest.raises(error, match=message):
        open_folder(place, error=error)


def test_nothing_is_made_before_it_is_needed(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "deep" / "folder")
    assert (folder.read("x"), folder.sizes(), folder.folders("")) == (None, {}, {})
    assert not (tmp_path / "deep").exists()
    folder.check_writable()
    assert names(folder) == []


def test_links_are_read_and_never_written_through(folder: Folder, target: Path) -> None:
    assert folder.local is not None
    for name in ("file", "deleted", "new"):
        (folder.local / name).symlink_to(target)
    assert folder.read("file") == b"mine"
    folder.write("file", b"other")
    assert not folder.write("new", b"other", new=True)
    folder.delete("deleted")
    for name in ("stored", "removed"):
        (folder.local / name).symlink_to(target.parent)
    assert folder.folders("", "marker") == {"removed": True, "stored": True}
    put(folder, "stored", {"marker": b"other"})
    folder.remove("removed", marker="marker")
    (folder.local / "loop").symlink_to(folder.local)
    assert folder.sizes() == {"file": 5, "new": 4, "stored/marker": 5}
    assert target.read_bytes() == b"mine"
    assert not list(folder.local.glob(".*"))


def test_a_link_to_nothing_is_not_followed_by_a_new_file(folder: Folder, tmp_path: Path) -> None:
    assert folder.local is not None
    (folder.local / "x").symlink_to(tmp_path / "none")
    assert not folder.write("x", b"", new=True)
    assert not (tmp_path / "none").exists()


def test_a_file_system_without_hard_links(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    assert folder.write("x", b"one", new=True)
    assert not folder.write("x", b"two", new=True)
    assert folder.sizes() == {"x": 3}


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_read(folder: Folder, make) -> None:
    assert folder.local is not None
    make(folder.local / "x")
    with pytest.raises(DocumentError, match=rf"^{folder}/x is not a regular file$"):
        folder.read("x")
    assert not folder.matches("x", 0, digest(b""))


def test_what_cannot_be_written_is_one_line(folder: Folder) -> None:
    assert folder.local is not None
    (folder.local / "x").mkdir()
    (folder.local / "x" / "y").touch()
    for call in (lambda: folder.write("x", b""), lambda: folder.delete("x")):
        with pytest.raises(DataError, match=rf"^{folder}/x: cannot be written \(Is a directory\); make room"):
            call()
    below = LocalFolder(folder.local / "x" / "y", error=RunError)
    with pytest.raises(RunError, match=r"/x/y: cannot be written \(.*\); choose a writable folder$"):
        below.check_writable()
    with pytest.raises(RunError, match=r"cannot be written"):
        below.staging("step_1").__enter__()
    assert names(folder) == ["x"]


def test_a_staged_folder_that_was_removed_is_not_stored(folder: Folder) -> None:
    put(folder, "step_1", {"marker": b"1"})
    with folder.staging("step_1") as staged:
        folder.remove_stale()
        with pytest.raises(FileNotFoundError):
            folder.store(staged, "step_1", marker="marker")
    assert folder.read("step_1/marker") == b"1"


def test_leftovers_go_while_nobody_writes(folder: Folder) -> None:
    assert folder.local is not None
    for name in (".x.0a1b2c3d.json", ".x.json", "x.0a1b2c3d"):
        (folder.local / name).touch()
    with folder.writing():
        assert names(folder) == [".x.json", "x.0a1b2c3d"]
        (folder.local / ".x.0a1b2c3d.json").touch()
        with folder.writing():
            assert names(folder) == [".x.0a1b2c3d.json", ".x.json", "x.0a1b2c3d"]
    (folder.local / ".partial-step_1-x").mkdir()
    folder.remove_stale()
    assert names(folder) == [".x.json", "x.0a1b2c3d"]


def test_a_local_folder_needs_no_client_of_object_storage(folder: Folder) -> None:
    code = (
        "import sys; from capsdist.storage import open_folder\n"
        f"folder = open_folder({str(folder)!r})\n"
        "folder.check_writable(), folder.write('x', b''), folder.check_readable(), folder.read('x')\n"
        "print({'s3fs', 'fsspec', 'botocore', 'tenacity', 'torch', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
