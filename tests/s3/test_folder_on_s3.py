"""`S3Folder` on a real server: what every folder does, large objects, long listings, keys and processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from folder_suite import *  # noqa: F403
from folder_suite import digest
from places import Place

from capsdist.errors import DataError, DocumentError, RunError
from capsdist.storage import Folder, open_folder, s3_parts
from capsdist.storage.s3_folder import S3Folder

pytestmark = pytest.mark.s3
MIB5 = 5 * 2**20


@pytest.fixture
def folder(place: Place) -> Folder:
    """A prefix without objects."""
    return open_folder(f"{place.url}/folder")


@pytest.mark.parametrize("size", [0, 1, 511, 100_003, 60_000_017], ids=lambda size: f"{size} bytes")
def test_what_is_written_is_read(place: Place, size):
    """The largest is above the size at which s3fs would read in ranges."""
    folder, content = S3Folder(place.url), os.urandom(size)
    assert folder.write("deep/x", content, metadata={"sha256": "abc"})
    assert folder.read("deep/x", sha256=digest(content)) == content
    assert folder.metadata("deep/x") == (size, {"sha256": "abc"})


def test_of_an_object_that_is_too_large_nothing_is_read(place: Place):
    place.put("x", bytes(60_000_017))
    folder = S3Folder(place.url)
    folder.write("y", b"")  # connects
    tracemalloc.start()
    try:
        with pytest.raises(DocumentError, match=f"^{place.url}/x is larger than 60,000,016 bytes$"):
            folder.read("x", max_bytes=60_000_016)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [MIB5, MIB5 + 1, 3 * MIB5 - 7])
def test_large_files_go_in_parts(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    monkeypatch.setattr(s3_parts, "PART_BYTES", MIB5)  # the smallest that S3 allows
    folder, content = S3Folder(place.url), os.urandom(size)
    (tmp_path / "large").write_bytes(content)
    (tmp_path / "end").write_bytes(b"")
    folder.store(tmp_path, "step", marker="end")
    assert folder.sizes() == {"step/large": size, "step/end": 0}
    with folder.fetched("step", {"large": size, "end": 0}) as copy:
        assert (copy / "large").read_bytes() == content
    with (
        pytest.raises(DocumentError, match=f"^{place.url}/step/large is larger than {size - 1:,} bytes$"),
        folder.fetched("step", {"large": size - 1}),
    ):
        pass


def test_a_missing_object(place: Place):
    folder = S3Folder(place.url)
    assert folder.read("x") is None
    with pytest.raises(FileNotFoundError, match=f"{place.url}/x"):
        folder.metadata("x")
    folder.delete("x")


def test_a_missing_bucket_is_not_a_missing_object(place: Place):
    with pytest.raises(
        RunError, match=r"s3://no-such-bucket/x: cannot be read \(there is no such bucket\); create"
    ):
        S3Folder("s3://no-such-bucket", error=RunError).read("x")


def test_listing_goes_on_after_a_thousand(place: Place):
    folder = S3Folder(place.url)
    names = {f"a/{number:04d}": number % 3 for number in range(1003)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: folder.write(item[0], b"x" * item[1]), names.items()))
    folder.write("b", b"12345")
    assert folder.sizes("a/") == names
    assert folder.sizes() == {**names, "b": 5}
    assert folder.sizes("c") == {}


def test_damage_where_it_is_stored_is_not_retried_for_long(place: Place):
    place.put("x", b"other")
    with pytest.raises(
        DataError, match=r"/x \(sha256 [0-9a-f]{64}\): cannot be read \(its content does not have its"
    ):
        S3Folder(place.url).read("x", sha256=digest(b"right"))


def read_in_child(folder: S3Folder, pipe) -> None:
    pipe.send(folder.read("x"))


def test_a_forked_process_makes_its_own_connections(place: Place):
    folder = S3Folder(place.url)
    folder.write("x", b"content")
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=read_in_child, args=(folder, theirs))
    child.start()
    try:
        assert ours.poll(30)
        assert ours.recv() == b"content"
    finally:
        child.kill()
        child.join()


def test_it_pickles_without_the_secret(place: Place):
    folder = S3Folder(place.url)
    folder.write("x", b"content")
    pickled = pickle.dumps(folder)
    assert place.server.full.secret_key.encode() not in pickled
    assert pickle.loads(pickled).read("x") == b"content"


def test_a_key_that_may_only_read(place: Place, monkeypatch):
    place.put("x", b"content")
    for name, value in place.server.environment(place.server.read_only).items():
        monkeypatch.setenv(name, value)
    folder = S3Folder(place.url)
    assert folder.read("x") == b"content"
    for call in (lambda: folder.write("y", b""), lambda: folder.delete("x")):
        with pytest.raises(
            DataError, match=r"cannot be (written|deleted) \(access denied\); allow it to the key in"
        ):
            call()
    assert place.objects() == {"x": b"content"}
