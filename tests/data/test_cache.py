"""The node's cache: one download, right bytes, a budget that holds, nothing removed under a reader."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from capsdist.errors import DataError
from capsdist.storage import Cache
from limits import PATIENCE_S, full_disk

SIZE = 1000


def named(number: int) -> tuple[str, bytes]:
    """Content number `number` and its sha256."""
    content = number.to_bytes(4, "big") * (SIZE // 4)
    return hashlib.sha256(content).hexdigest(), content


def read(cache: Cache, number: int, fetch: Callable[[], bytes] | None = None) -> bytes:
    name, content = named(number)
    with cache.open(name, SIZE, fetch or (lambda: content)) as file:
        return file.read()


def absent() -> bytes:
    raise AssertionError("fetched although it is cached")


def held(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".room"}


def test_an_object_is_fetched_once(tmp_path):
    cache = Cache(tmp_path / "deep" / "cache", 10 * SIZE)
    assert read(cache, 1) == read(cache, 1, absent) == read(Cache(tmp_path / "deep" / "cache"), 1, absent)
    assert cache.holds(named(1)[0])
    assert not cache.holds(named(2)[0])
    assert oct((tmp_path / "deep" / "cache").stat().st_mode & 0o777) == "0o700"


def test_a_failed_fetch_leaves_nothing(tmp_path):
    cache = Cache(tmp_path, 10 * SIZE)

    def fail() -> bytes:
        raise DataError("not there")

    with pytest.raises(DataError, match="not there"):
        read(cache, 1, fail)
    assert held(tmp_path) == set()
    assert read(cache, 1) == named(1)[1]


@pytest.mark.parametrize("content", [b"", b"cut", b"x" * (SIZE + 1)])
def test_a_file_of_another_size_is_replaced(tmp_path, content):
    (tmp_path / named(1)[0]).write_bytes(content)
    assert read(Cache(tmp_path, 10 * SIZE), 1) == named(1)[1]


def test_what_a_killed_process_left_is_used_and_replaced(tmp_path):
    (tmp_path / f"{named(1)[0]}.part").write_bytes(b"half" * SIZE)
    assert read(Cache(tmp_path, 10 * SIZE), 1) == named(1)[1]
    assert held(tmp_path) == {named(1)[0]}


def test_what_a_killed_process_left_is_removed_for_room(tmp_path):
    (tmp_path / f"{named(1)[0]}.part").write_bytes(b"x" * SIZE)
    assert read(Cache(tmp_path, SIZE), 2) == named(2)[1]
    assert held(tmp_path) == {named(2)[0]}


def test_the_least_recently_used_goes_first(tmp_path):
    cache = Cache(tmp_path, 3 * SIZE + SIZE // 2)
    for number in (1, 2, 3, 1, 4):
        read(cache, number)
        time.sleep(0.01)  # file systems tick
    assert held(tmp_path) == {named(number)[0] for number in (1, 3, 4)}


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("seed", range(3))
def test_the_budget_holds_while_threads_fill_it(tmp_path, seed):
    cache, highest = Cache(tmp_path, 5 * SIZE), 0

    def fetch_slowly(number: int) -> bytes:
        def fetch() -> bytes:
            nonlocal highest
            with (tmp_path / ".room").open("ab") as lock:  # while nobody makes room or renames
                fcntl.flock(lock, fcntl.LOCK_EX)
                highest = max(highest, total(tmp_path))
            time.sleep(0.002)
            return named(number)[1]

        return read(cache, number, fetch)

    numbers = [(seed + 1) * place * place % 17 for place in range(60)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fetch_slowly, numbers))
    assert found == [named(number)[1] for number in numbers]
    assert 0 < highest <= 5 * SIZE
    assert total(tmp_path) <= 5 * SIZE


@pytest.mark.parametrize("as_map", [False, True])
def test_what_is_in_use_stays(tmp_path, monkeypatch, as_map):
    """A mapping counts as use although its file object is closed."""
    monkeypatch.setenv("CAPSDIST_S3_DEADLINE_S", "0.2")
    cache, (name, content) = Cache(tmp_path, 2 * SIZE), named(1)
    used = cache.open(name, SIZE, lambda: content)
    if as_map:
        with used as file:
            used = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for number in (2, 3, 4):
        read(cache, number)
    assert name in held(tmp_path)
    assert used.read() == content
    used.close()
    del used
    for number in (2, 3):
        read(cache, number)
    assert name not in held(tmp_path)  # mutant: once closed it goes


def test_no_room_is_an_error_after_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPSDIST_S3_DEADLINE_S", "0.2")
    cache = Cache(tmp_path, SIZE)
    name, content = named(1)
    with (
        cache.open(name, SIZE, lambda: content),
        pytest.raises(
            DataError, match="may hold 1000 bytes and has no room for another 1000, what it holds is in"
        ),
    ):
        read(cache, 2)
    assert read(cache, 2) == named(2)[1]


def test_an_object_larger_than_the_budget_is_refused_at_once(tmp_path):
    with pytest.raises(DataError, match=r"no room for another 1000, .*; raise CAPSDIST_CACHE_BYTES"):
        read(Cache(tmp_path, SIZE - 1), 1)
    assert held(tmp_path) == set()


def test_a_fetch_that_waits_for_room_goes_on(tmp_path):
    cache = Cache(tmp_path, SIZE)
    file = cache.open(named(1)[0], SIZE, lambda: named(1)[1])
    timer = threading.Timer(0.2, file.close)
    timer.start()
    assert read(cache, 2) == named(2)[1]
    timer.join()


def fetch_in_process(folder: Path, number: int) -> bool:
    """Read one object; every call of fetch appends to a file."""

    def fetch() -> bytes:
        with (folder.parent / "fetches").open("a") as log:
            log.write(f"{number}\n")
        time.sleep(0.1)
        return named(number)[1]

    return read(Cache(folder, 20 * SIZE), number, fetch) == named(number)[1]


def test_processes_share_one_download(tmp_path):
    folder = tmp_path / "cache"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert all(
            pool.starmap(fetch_in_process, [(folder, number % 3) for number in range(24)], chunksize=1)
        )
    assert sorted((tmp_path / "fetches").read_text().split()) == ["0", "1", "2"]


def test_mutant_without_locks_processes_download_again(tmp_path, monkeypatch):
    """Each with a cache of its own, which is what no lock would amount to."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        folders = [tmp_path / "a", tmp_path / "b"]
        assert all(pool.starmap(fetch_in_process, [(folder, 0) for folder in folders], chunksize=1))
    assert (tmp_path / "fetches").read_text().split() == ["0", "0"]


def hang(folder: Path, entered) -> None:
    def fetch() -> bytes:
        entered.set()
        time.sleep(600)
        return b""

    read(Cache(folder, 10 * SIZE), 1, fetch)


def test_a_killed_download_is_taken_over(tmp_path, monkeypatch):
    """While it hangs the others give up in time; once it is dead they fetch themselves."""
    monkeypatch.setenv("CAPSDIST_S3_DEADLINE_S", "0.3")
    context = multiprocessing.get_context("fork")
    entered = context.Event()
    process = context.Process(target=hang, args=(tmp_path, entered))
    process.start()
    try:
        assert entered.wait(PATIENCE_S)
        with pytest.raises(
            DataError, match=r"\.part: another process has been writing it for 0 s; end that process"
        ):
            read(Cache(tmp_path, 10 * SIZE), 1)
    finally:
        process.kill()
        process.join()
    assert read(Cache(tmp_path, 10 * SIZE), 1) == named(1)[1]


def test_a_damaged_object_is_discarded(tmp_path):
    cache = Cache(tmp_path, 10 * SIZE)
    read(cache, 1)
    cache.discard(named(1)[0])
    cache.discard(named(1)[0])
    assert held(tmp_path) == set()


@pytest.mark.parametrize("name", ["../outside", "", "A" * 64, "0" * 63])
def test_only_checksums_name_files(tmp_path, name):
    with pytest.raises(DataError, match="is not a sha256"):
        Cache(tmp_path / "cache", SIZE).open(name, SIZE, absent)


def test_the_environment_places_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPSDIST_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("CAPSDIST_CACHE_BYTES", "1e6")
    cache = Cache()
    assert (cache.folder, cache.budget_bytes) == (tmp_path / "here", 1_000_000)
    monkeypatch.delenv("CAPSDIST_CACHE")
    monkeypatch.delenv("CAPSDIST_CACHE_BYTES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cache = Cache()
    assert (cache.folder, cache.budget_bytes) == (tmp_path / "xdg" / "capsdist", 64 * 2**30)


@pytest.mark.parametrize("variable", ["CAPSDIST_CACHE_BYTES", "CAPSDIST_S3_DEADLINE_S"])
@pytest.mark.parametrize("value", ["many", "0", "-1", "inf", "nan"])
def test_a_wrong_number_in_the_environment(tmp_path, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(
        DataError, match=f"{variable}='{value}': must be a positive number; correct it in the env"
    ):
        read(Cache(tmp_path), 1)


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"file/cache: the cache cannot be used \(Not a directory\); set CAPSDIST_CACHE"
    ):
        Cache(tmp_path / "file" / "cache")


@full_disk(SIZE - 1)
def test_a_full_disk(tmp_path):
    with pytest.raises(
        DataError, match=r"the cache cannot be used \((No space left|File too large)"
    ) as caught:
        read(Cache(tmp_path, 10 * SIZE), 1)
    assert str(caught.value).endswith("; set CAPSDIST_CACHE to another folder with room")


@pytest.mark.parametrize("name", [named(1)[0], f"{named(1)[0]}.part", ".room"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_what_is_no_file_of_the_cache_is_left_alone_and_named(tmp_path, name, kind):
    target, cache = tmp_path / "target", Cache(tmp_path / "cache", 10 * SIZE)
    path = cache.folder / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
    if kind == "link":
        target.write_bytes(b"x" * SIZE)
        os.utime(target, ns=(1, 1))
    with pytest.raises(
        DataError, match=rf"{name}: the cache cannot be used \(.*set CAPSDIST_CACHE"
    ) as caught:
        read(cache, 1)
    assert "\n" not in str(caught.value)
    assert os.path.lexists(path)
    assert target.exists() == (kind == "link")
    if kind == "link":
        assert (target.stat().st_atime_ns, target.read_bytes()) == (1, b"x" * SIZE)


def test_room_is_made_among_files_only(tmp_path):
    (tmp_path / "large").write_bytes(b"x" * 10 * SIZE)
    cache = Cache(tmp_path / "cache", SIZE)
    (cache.folder / "link").symlink_to(tmp_path / "large")
    os.mkfifo(cache.folder / "pipe")
    assert read(cache, 1) == named(1)[1]
    assert held(cache.folder) == {"link", "pipe", named(1)[0]}


def test_a_file_system_without_locks_is_named_at_once(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(
        DataError, match=r"the cache cannot be used \(No locks available\); set CAPSDIST_CACHE"
    ):
        read(Cache(tmp_path, 10 * SIZE), 1)
