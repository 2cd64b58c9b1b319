"""What every `Folder` does: test modules import these tests and define the fixture `folder`, an empty one."""

from __future__ import annotations

import hashlib
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from capsdist.errors import CapsdistError, DocumentError, MissingDataError
from capsdist.storage import Folder, open_folder


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(folder: Folder, name: str, files: dict[str, bytes], marker: str = "marker") -> None:
    """Store `files` as the folder `name`."""
    with folder.staging(name) as staged:
        assert list(staged.iterdir()) == []
        for file, content in files.items():
            (staged / file).write_bytes(content)
        folder.store(staged, name, marker=marker)
    assert not staged.exists()


def test_it_is_named_by_its_place(folder: Folder) -> None:
    assert str(folder).endswith(f"/{folder.name}")
    assert folder.path("x") == f"{folder}/x"
    assert folder.parent is not None
    assert str(folder) == f"{folder.parent}/{folder.name}"


def test_files_are_written_replaced_read_and_deleted(folder: Folder) -> None:
    assert folder.read("x") is None
    for content in (b"old", b"", b"new and longer"):
        assert folder.write("x", content)
        assert folder.read("x", sha256=digest(content)) == content
    folder.delete("x")
    folder.delete("x")
    assert folder.read("x") is None
    assert folder.sizes() == {}


def test_a_file_above_the_limit_is_not_read(folder: Folder) -> None:
    folder.write("x", b"1234")
    assert folder.read("x", max_bytes=4) == b"1234"
    with pytest.raises(DocumentError, match=f"^{folder}/x is larger than 3 bytes$"):
        folder.read("x", max_bytes=3)


def test_other_content_than_asked_for_is_an_error(folder: Folder) -> None:
    folder.write("x", b"other")
    with pytest.raises(CapsdistError, match=rf"^{folder}/x.*(wrong sha256|does not have its checksum)"):
        folder.read("x", sha256=digest(b"right"))


def test_a_new_file_is_written_once(folder: Folder) -> None:
    assert folder.write("x", b"one", new=True)
    assert folder.write("x", b"one", new=True)  # as after a lost answer
    for other in (b"two", b"longer"):
        assert not folder.write("x", other, new=True)
    assert folder.read("x") == b"one"
    assert folder.write("x", b"two")
    assert folder.read("x") == b"two"
    assert folder.sizes() == {"x": 3}


def test_of_many_writers_of_a_new_file_one_wins(folder: Folder) -> None:
    gate = threading.Barrier(6)

    def write(number: int) -> bool:
        gate.wait()
        return folder.write("x", b"%d" % number, new=True)

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(write, range(6)))
    assert sum(won) == 1
    assert folder.read("x") == b"%d" % won.index(True)


def test_sizes_are_those_of_all_files_below_a_prefix(folder: Folder) -> None:
    folder.write("a", b"1")
    folder.write("ab", b"")
    put(folder, "abc", {"x": b"123", "marker": b"12"})
    assert folder.sizes("ab") == {"ab": 0, "abc/x": 3, "abc/marker": 2}
    assert folder.sizes("abc/") == {"abc/x": 3, "abc/marker": 2}
    assert folder.sizes() == {"a": 1, **folder.sizes("ab")}
    assert folder.sizes("c") == {}


def test_content_is_compared_without_a_download(folder: Folder) -> None:
    assert not folder.matches("x", 3, digest(b"one"))
    folder.write("x", b"one", metadata={"sha256": digest(b"one")})
    assert folder.matches("x", 3, digest(b"one"))
    assert not folder.matches("x", 3, digest(b"two"))
    assert not folder.matches("x", 2, digest(b"on"))


def test_a_file_is_opened_near_by(folder: Folder) -> None:
    content = bytes(range(256))
    folder.write("x", content)
    for _ in range(2):
        with folder.open("x", size_bytes=256, sha256=digest(content)) as file:
            assert file.read() == content
        assert folder.is_near(digest(content))
    copies = folder.discard_copy(digest(content))
    assert (copies is None) == (folder.local is not None)
    with folder.open("x", size_bytes=256, sha256=digest(content)) as file:
        assert file.read() == content
    with pytest.raises(MissingDataError, match=f"{folder}/y: there is no such"):
        folder.open("y", size_bytes=3, sha256=digest(b"one"))


def test_a_stored_folder_replaces_an_older_one_and_its_marker_completes_it(folder: Folder) -> None:
    put(folder, "step_2", {"x": b"old", "stale": b"old"})
    assert folder.folders("step_", "marker") == {"step_2": False}
    put(folder, "step_1", {"x": b"one", "marker": b"1"})
    put(folder, "step_2", {"marker": b"2", "x": b"two"})
    put(folder, "other", {"marker": b""})
    assert folder.folders("step_", "marker") == {"step_1": True, "step_2": True}
    assert list(folder.folders("", "marker")) == ["other", "step_1", "step_2"]
    assert folder.folders("step_", "y") == {"step_1": False, "step_2": False}
    assert folder.folders("none") == {}
    assert folder.read("step_2/x") == b"two"


def test_a_stored_folder_is_fetched(folder: Folder, tmp_path: Path) -> None:
    put(folder, "step_1", {"x": b"one", "y": b"", "marker": b"1"})
    with folder.fetched("step_1", {"x": 3, "marker": 9, "none": 9}) as here:
        found = {path.name: path.read_bytes() for path in here.iterdir() if path.name != "y"}
        assert found == {"x": b"one", "marker": b"1"}
    assert here.exists() == (folder.local is not None)
    if folder.local is None:
        with folder.fetched("step_1", {"x": 3}, at=tmp_path / "at") as here:
            assert [path.name for path in (tmp_path / "at").iterdir()] == ["x"]
            with pytest.raises(FileExistsError):
                folder.fetched("step_1", {"x": 3}, at=here).__enter__()
        assert not here.exists()
        with pytest.raises(DocumentError, match=f"^{folder}/step_1/x is larger than 2 bytes$"):
            folder.fetched("step_1", {"x": 2}).__enter__()


def test_a_removed_folder_is_gone_and_no_other(folder: Folder) -> None:
    for name in ("step_1", "step_10"):
        put(folder, name, {"x": b"one", "marker": b"1"})
    folder.remove("step_1", marker="marker")
    folder.remove("step_1", marker="marker")
    folder.remove_stale()
    assert folder.folders("", "marker") == {"step_10": True}


def test_what_is_not_there_is_named(folder: Folder) -> None:
    missing = open_folder(folder.path("no"))
    with pytest.raises(MissingDataError, match=rf"^{folder}/no.*: there is no such run; make it$"):
        missing.check_readable(thing="run", remedy="make it")
    folder.write("x", b"")
    folder.check_readable()


def test_a_check_leaves_nothing(folder: Folder) -> None:
    folder.write("x", b"")
    folder.check_writable()
    assert folder.sizes() == {"x": 0}
    with folder.writing():
        folder.write("y", b"1")
    assert folder.sizes() == {"x": 0, "y": 1}


def test_it_can_be_pickled(folder: Folder) -> None:
    folder.write("x", b"content")
    again = pickle.loads(pickle.dumps(folder))
    assert (str(again), again.read("x")) == (str(folder), b"content")
