"""Whole objects on a real server: what is written is read, conditional writes, listings of any length."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from places import Place

from capsdist.errors import DataError, DocumentError, RunError
from capsdist.storage import ObjectFolder

pytestmark = pytest.mark.s3


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 511, 100_003, 60_000_017], ids=lambda size: f"{size} bytes")
def test_what_is_written_is_read(place: Place, size):
    """The largest is above the size at which s3fs would read in ranges."""
    folder, content = ObjectFolder(place.url), os.urandom(size)
    assert folder.write("deep/x", content, metadata={"sha256": "abc"})
    assert folder.read("deep/x", sha256=digest(content)) == content
    assert folder.metadata("deep/x") == (size, {"sha256": "abc"})


def test_of_an_object_that_is_too_large_nothing_is_read(place: Place):
    place.put("x", bytes(60_000_017))
    folder = ObjectFolder(place.url)
    folder.write("y", b"")  # connects
    tracemalloc.start()
    try:
        with pytest.raises(DocumentError, match=f"^{place.url}/x is larger than 60,000,016 bytes$"):
            folder.read("x", max_bytes=60_000_016)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_a_missing_object(place: Place):
    folder = ObjectFolder(place.url)
    for look in (folder.read, folder.metadata):
        with pytest.raises(FileNotFoundError, match=f"{place.url}/x"):
            look("x")
    folder.delete("x")


def test_a_missing_bucket_is_not_a_missing_object(place: Place):
    with pytest.raises(
        RunError, match=r"s3://no-such-bucket/x: cannot be read \(there is no such bucket\); create"
    ):
        ObjectFolder("s3://no-such-bucket", error=RunError).read("x")


def test_a_new_object_is_written_once(place: Place):
    folder = ObjectFolder(place.url)
    assert folder.write("x", b"one", new=True)
    assert folder.write("x", b"one", new=True)  # as after a lost answer
    assert not folder.write("x", b"two", new=True)
    assert folder.read("x") == b"one"
    assert folder.write("x", b"two")
    assert folder.read("x") == b"two"


def test_of_many_writers_of_a_new_object_one_wins(place: Place):
    folder, gate = ObjectFolder(place.url), threading.Barrier(6)

    def write(number: int) -> bool:
        gate.wait()
        return folder.write("x", b"%d" % number, new=True)

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(write, range(6)))
    assert sum(won) == 1
    assert folder.read("x") == b"%d" % won.index(True)


def test_listing_goes_on_after_a_thousand(place: Place):
    folder = ObjectFolder(place.url)
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
        ObjectFolder(place.url).read("x", sha256=digest(b"right"))


def read_in_child(folder: ObjectFolder, pipe) -> None:
    pipe.send(folder.read("x"))


def test_a_forked_process_makes_its_own_connections(place: Place):
    folder = ObjectFolder(place.url)
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
    folder = ObjectFolder(place.url)
    folder.write("x", b"content")
    pickled = pickle.dumps(folder)
    assert place.server.full.secret_key.encode() not in pickled
    assert pickle.loads(pickled).read("x") == b"content"


def test_a_key_that_may_only_read(place: Place, monkeypatch):
    place.put("x", b"content")
    for name, value in place.server.environment(place.server.read_only).items():
        monkeypatch.setenv(name, value)
    folder = ObjectFolder(place.url)
    assert folder.read("x") == b"content"
    for call in (lambda: folder.write("y", b""), lambda: folder.delete("x")):
        with pytest.raises(
            DataError, match=r"cannot be (written|deleted) \(access denied\); allow it to the key in"
        ):
            call()
    assert place.objects() == {"x": b"content"}
