"""Memory that processes share: filled once, whole or not there, gone with its last user or after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from capsdist.errors import DataError
from capsdist.storage.shared_memory import (
    SHARED_MEMORY,
    NoRoomError,
    SharedMemory,
    free_shared_memory,
    remove_unused,
)

KEY, OTHER = "ab" * 16, "cd" * 16
CONTENT = bytes(range(256)) * 33 + b"odd"

# Fills with a byte of its own; "filling" is printed before, and what is there after it.
USER = """
import sys, time
from pathlib import Path
from capsdist.storage.shared_memory import SharedMemory
def fill(memory):
    print("filling", flush=True)
    time.sleep(float(sys.argv[3]))
    memory[:] = bytes([int(sys.argv[2])]) * 5001
shared = SharedMemory("ab" * 16, 5001, fill, folder=Path(sys.argv[1]))
print(shared.memory[0], set(shared.memory) == {shared.memory[0]}, flush=True)
sys.stdin.read()
shared.close()
"""


@pytest.fixture
def start(tmp_path: Path):
    """Start a process that uses the memory; all are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(byte: int, fill_s: float = 0.0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", USER, str(tmp_path), str(byte), str(fill_s)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def opened(folder: Path, content: bytes = CONTENT, key: str = KEY) -> SharedMemory:
    def fill(memory: memoryview) -> None:
        memory[:] = content

    return SharedMemory(key, len(content), fill, folder=folder)


def refuse(memory: memoryview) -> None:
    raise AssertionError("must not be filled again")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_second_user_finds_what_the_first_one_has_filled(tmp_path: Path) -> None:
    first = opened(tmp_path)
    second = SharedMemory(KEY, len(CONTENT), refuse, folder=tmp_path)
    assert bytes(first.memory) == bytes(second.memory) == CONTENT
    [path] = tmp_path.iterdir()
    assert path.name == f"capsdist-{os.geteuid()}-{KEY}.shared"
    assert path.stat().st_mode & 0o777 == 0o600
    first.close()
    remove_unused(tmp_path)
    assert path.exists()
    second.close()
    second.close()
    assert names_in(tmp_path) == []
    assert bytes(first.memory) == CONTENT  # it stays for those who have it


def test_what_one_user_writes_no_other_one_sees(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    first.memory[0] = 77
    assert bytes(second.memory) == bytes(opened(tmp_path).memory) == CONTENT


def test_a_forgotten_one_is_removed(tmp_path: Path) -> None:
    shared = opened(tmp_path)
    del shared
    assert names_in(tmp_path) == []


def test_keys_have_memory_of_their_own(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path, b"other", OTHER)
    assert len(names_in(tmp_path)) == 2
    assert (bytes(first.memory), bytes(second.memory)) == (CONTENT, b"other")


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this system has no /dev/shm")
def test_it_is_in_shared_memory_by_default() -> None:
    key = os.urandom(16).hex()
    shared = SharedMemory(key, 3, lambda memory: None)
    assert shared.path == SHARED_MEMORY / f"capsdist-{os.geteuid()}-{key}.shared"
    assert bytes(shared.memory) == bytes(3)
    shared.close()
    assert not shared.path.exists()
    assert free_shared_memory() > 0


def test_processes_that_start_together_fill_it_once(tmp_path: Path, start) -> None:
    users = [start(byte, 0.3) for byte in (1, 2, 3)]
    first = {user: line(user) for user in users}
    [filler] = [user for user, said in first.items() if said == "filling"]
    byte = users.index(filler) + 1
    assert line(filler) == f"{byte} True"
    assert {said for user, said in first.items() if user is not filler} == {f"{byte} True"}
    for user in users[:2]:
        user.kill()
        user.wait()
    assert names_in(tmp_path) == [f"capsdist-{os.geteuid()}-{KEY}.shared"]
    users[2].communicate("")
    assert names_in(tmp_path) == []


def test_a_filler_that_dies_is_replaced_by_one_that_waits(tmp_path: Path, start) -> None:
    mortal = start(1, 600)
    assert line(mortal) == "filling"
    assert names_in(tmp_path) == [f"capsdist-{os.geteuid()}-{KEY}.{kind}" for kind in ("lock", "part")]
    waiting = start(2)
    mortal.send_signal(signal.SIGKILL)
    assert line(waiting) == "filling"
    assert line(waiting) == "2 True"
    assert names_in(tmp_path) == [f"capsdist-{os.geteuid()}-{KEY}.shared"]


def test_what_killed_processes_have_left_is_removed(tmp_path: Path, start) -> None:
    filling, using = start(1, 600), None
    assert line(filling) == "filling"
    filling.kill()
    filling.wait()
    using = start(2)
    assert (line(using), line(using)) == ("filling", "2 True")
    using.kill()
    using.wait()
    for name in ("capsdist-0-short.shared", f"capsdist-{os.geteuid() + 1}-{KEY}.part"):  # not ours
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f"capsdist-{os.geteuid()}-{OTHER}.shared").symlink_to(tmp_path)
    assert len(names_in(tmp_path)) == 4
    remove_unused(tmp_path)
    assert len(names_in(tmp_path)) == 3
    assert f"capsdist-{os.geteuid()}-{KEY}.shared" not in names_in(tmp_path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "other key": lambda path: path.write_bytes(path.read_bytes().replace(KEY.encode(), OTHER.encode())),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("used", [False, True])
def test_a_file_that_is_not_right_is_filled_anew(tmp_path: Path, kind: str, used: bool) -> None:
    """Also where another process uses it, which has compared it before and keeps its copy of it."""
    first = opened(tmp_path)
    content = first.path.read_bytes()
    if not used:
        first.close()
        first.path.write_bytes(content)  # as after a kill
    DAMAGE[kind](first.path)
    filled: list[int] = []

    def fill(memory: memoryview) -> None:
        filled.append(len(memory))
        memory[:] = CONTENT

    again = SharedMemory(KEY, len(CONTENT), fill, folder=tmp_path)
    assert filled == [len(CONTENT)]
    assert bytes(again.memory) == CONTENT
    assert again.path.read_bytes() == content


def test_an_intact_file_of_a_killed_process_is_used(tmp_path: Path) -> None:
    first = opened(tmp_path)
    content = first.path.read_bytes()
    first.close()
    first.path.write_bytes(content)
    again = SharedMemory(KEY, len(CONTENT), refuse, folder=tmp_path)
    assert bytes(again.memory) == CONTENT
    again.close()
    assert names_in(tmp_path) == []


def test_an_error_while_it_is_filled_leaves_nothing(tmp_path: Path) -> None:
    def fail(memory: memoryview) -> None:
        memory[:1] = b"x"
        raise DataError("a damaged shard")

    with pytest.raises(DataError, match="a damaged shard"):
        SharedMemory(KEY, 9, fail, folder=tmp_path)
    assert names_in(tmp_path) == []


def test_room_is_asked_for_by_the_one_that_fills(tmp_path: Path) -> None:
    def full() -> None:
        raise NoRoomError("no room")

    with pytest.raises(NoRoomError, match="no room"):
        SharedMemory(KEY, len(CONTENT), refuse, folder=tmp_path, check_room=full)
    assert names_in(tmp_path) == []
    first = opened(tmp_path)
    second = SharedMemory(KEY, len(CONTENT), refuse, folder=tmp_path, check_room=full)
    assert bytes(second.memory) == bytes(first.memory)


def test_more_than_there_is_and_a_missing_folder_are_one_line(tmp_path: Path) -> None:
    message = r"1,125,899,906,842,624 bytes cannot be shared \(.*\), [\d,]+ are free there; set --data.res"
    with pytest.raises(NoRoomError, match=message):
        SharedMemory(KEY, 1 << 50, refuse, folder=tmp_path)
    assert names_in(tmp_path) == []
    with pytest.raises(NoRoomError, match=r"9 bytes cannot be shared \(No such file.*\), 0 are free"):
        SharedMemory(KEY, 9, refuse, folder=tmp_path / "no")
    remove_unused(tmp_path / "no")


def test_no_link_is_followed(tmp_path: Path) -> None:
    folder, target = tmp_path / "shared", tmp_path / "target"
    folder.mkdir()
    target.write_bytes(b"kept")
    for suffix in ("shared", "lock"):
        link = folder / f"capsdist-{os.geteuid()}-{KEY}.{suffix}"
        link.symlink_to(target)
        with pytest.raises(NoRoomError, match="symbolic links"):
            opened(folder)
        link.unlink()
    assert target.read_bytes() == b"kept"
