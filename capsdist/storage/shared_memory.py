"""Bytes that processes of one user on one node share: a file in shared memory that each of them maps.

One process fills the file while the others wait; it gets its name when it is whole. The last process that
uses it removes it, and `remove_unused` what processes that were killed have left.
All of this rests on locks of the system (flock), which end with the process that holds them:

- NAME.lock is locked exclusively by the process that fills NAME.part, for which others wait;
- NAME.part, which is renamed to NAME.shared, is locked shared by every process that uses it.

A file begins with a page of text: what it is, its key, its size, and the xxh3_128 of its bytes, which is
compared by each process that opens it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import xxhash

from capsdist.errors import DataError
from capsdist.storage.durable import names, open_lock_file, open_regular

__all__ = ["SHARED_MEMORY", "NoRoomError", "SharedMemory", "free_shared_memory", "remove_unused"]

SHARED_MEMORY = Path("/dev/shm")
"""Folder whose files are in memory."""

_HEAD_BYTES = 4096  # a page, so that what follows is aligned
_NAME = re.compile(r"capsdist-(\d+)-[0-9a-f]{32}\.(?:lock|part|shared)")


class NoRoomError(DataError):
    """Something does not fit into memory; the message names its bytes and those that are free."""


def free_shared_memory(folder: Path = SHARED_MEMORY) -> int:
    """Return the bytes that files in `folder` can still take, 0 if it is not there."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def remove_unused(folder: Path = SHARED_MEMORY) -> None:
    """Remove the files that processes of this user, which were killed, have left in `folder`."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _NAME.fullmatch(entry.name)
            if found and int(found[1]) == os.geteuid():
                with contextlib.suppress(OSError):
                    _remove_if_unused(Path(entry.path))


class SharedMemory:
    """The `num_bytes` bytes named by `key`, 32 hexadecimal digits, shared by the processes of this user.

    fill: called with the memory, writable, where no other process has filled it. check_room: called before
    that; it raises `NoRoomError` if the bytes should not be taken. `memory` holds the bytes, also after
    `close`; what this process writes into it, no other one sees.

    Raises:
        NoRoomError: `check_room` does, or the folder has no room or cannot be used. What `fill` raises.
    """

    def __init__(
        self,
        key: str,
        num_bytes: int,
        fill: Callable[[memoryview], None],
        *,
        check_room: Callable[[], None] = lambda: None,
        folder: Path = SHARED_MEMORY,
    ) -> None:
        self.path = folder / f"capsdist-{os.geteuid()}-{key}.shared"
        self._key, self._num_bytes, self._fill, self._check_room = key, num_bytes, fill, check_room
        try:
            while (file := self._attached() or self._filled()) is None:
                pass
            whole = mmap.mmap(file.fileno(), _HEAD_BYTES + num_bytes, access=mmap.ACCESS_COPY)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise NoRoomError(
                f"{error.filename or self.path}: {num_bytes:,} bytes cannot be shared ({reason}), "
                f"{free_shared_memory(folder):,} are free there; set --data.resident never"
            ) from None
        self.memory = memoryview(whole)[_HEAD_BYTES:]
        """The bytes, uint8 [num_bytes]."""
        self._release = weakref.finalize(self, _release, file, self.path, os.getpid())

    def close(self) -> None:
        """Stop using the file, and remove it if no other process uses it; `memory` stays."""
        self._release()

    def _attached(self) -> BinaryIO | None:
        """Return the finished file, locked, None if there is none; one that is not right is removed."""
        try:
            file = open(self.path, "rb", opener=open_regular)  # noqa: SIM115
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if names(self.path, file.fileno()):
            if self._is_right(file):
                return file
            self.path.unlink()
        file.close()
        return None

    def _is_right(self, file: BinaryIO) -> bool:
        status = os.fstat(file.fileno())
        if status.st_size != _HEAD_BYTES + self._num_bytes or status.st_uid != os.geteuid():
            return False
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return bytes(view[:_HEAD_BYTES]) == self._head(view[_HEAD_BYTES:])

    def _filled(self) -> BinaryIO | None:
        """Fill the file, once no other process does, and return it; None if another one has done it."""
        path = self.path.with_suffix(".lock")
        with open(path, "r+b", opener=lambda name, _: open_lock_file(Path(name))) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not names(path, lock.fileno()):
                return None
            try:
                return None if self.path.exists() else self._published()
            finally:
                path.unlink()

    def _published(self) -> BinaryIO | None:
        part = self.path.with_suffix(".part")
        part.unlink(missing_ok=True)  # a process that was killed has left it
        file = open(part, "x+b", opener=open_regular)  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            if not names(part, file.fileno()):  # removed before it was locked: once more
                file.close()
                return None
            self._check_room()
            os.posix_fallocate(file.fileno(), 0, _HEAD_BYTES + self._num_bytes)  # else no room is SIGBUS
            self._write(file)
            os.replace(part, self.path)
        except BaseException:
            with file:
                part.unlink(missing_ok=True)
            raise
        return file

    def _write(self, file: BinaryIO) -> None:
        # Neither is closed here: arrays of `fill` may still refer to them.
        view = memoryview(mmap.mmap(file.fileno(), _HEAD_BYTES + self._num_bytes))
        self._fill(view[_HEAD_BYTES:])
        view[:_HEAD_BYTES] = self._head(view[_HEAD_BYTES:])

    def _head(self, content: memoryview) -> bytes:
        digest = xxhash.xxh3_128_hexdigest(content)
        text = f"capsdist shared memory 1\n{self._key}\n{self._num_bytes}\n{digest}\n"
        return text.encode().ljust(_HEAD_BYTES)


def _release(file: BinaryIO, path: Path, pid: int) -> None:
    """Unlock `file`; remove it if nobody else has it locked. A process forked from `pid` leaves it alone."""
    with file:
        if os.getpid() != pid:
            return
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of several, the last one gets it
            if names(path, file.fileno()):
                path.unlink()
        # A mapping keeps the file open, and with it the lock.
        fcntl.flock(file, fcntl.LOCK_UN)


def _remove_if_unused(path: Path) -> None:
    with open(path, "rb", opener=open_regular) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if names(path, file.fileno()):
            path.unlink()
