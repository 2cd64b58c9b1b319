"""A node's cache of objects, by content: a file is named by its sha256, verified when filled, never changed.

All processes of a node share it: one of them downloads an object, the others wait for it. The least
recently used objects are removed to stay within a budget, but none that a process has open or mapped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from capsdist.errors import DataError
from capsdist.storage.durable import names, open_lock_file, open_regular
from capsdist.storage.settings import (
    cache_budget_from_environment,
    cache_folder_from_environment,
    deadline_from_environment,
)

__all__ = ["Cache"]

_POLL_S = 0.02
_SHA256 = re.compile("[0-9a-f]{64}")  # it comes from a file and names one
_ROOM = ".room"  # the lock of those who count and change what is here


class Cache:
    """Files in `folder` that hold at most `budget_bytes` together; both come from the environment by default.

    Locks (flock) make it safe: `<sha256>.part` is locked by the process that downloads, and a finished file
    by every process that reads it. The system drops a lock when its process ends, however it ends. What is
    not a regular file, a symbolic link for example, is neither opened nor removed.

    Raises:
        DataError: the folder cannot be made, naming CAPSDIST_CACHE.
    """

    def __init__(self, folder: Path | None = None, budget_bytes: int | None = None) -> None:
        self.folder = cache_folder_from_environment() if folder is None else folder
        self.budget_bytes = cache_budget_from_environment() if budget_bytes is None else budget_bytes
        with self._one_line_errors():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, sha256: str, size_bytes: int, fetch: Callable[[], bytes]) -> BinaryIO:
        """Return the object `sha256`, open for reading; `fetch` is called where the node does not have it.

        fetch: returns its `size_bytes` bytes, verified, or raises DataError. The object is not removed while
        the returned file or a mapping of it lives (`mmap` keeps the file open). Opening it leaves its time of
        modification alone, which tells readers of a change.

        Raises:
            DataError: what `fetch` raises; no room; another process downloads it for longer than one may.
        """
        if not _SHA256.fullmatch(sha256):
            raise DataError(f"{sha256!r}: is not a sha256; pack the data set again")
        path = self.folder / sha256
        with self._one_line_errors():
            while (file := _opened(path, size_bytes)) is None:
                with self._locked(path.with_suffix(".part")) as part:
                    if path.exists():
                        continue
                    self._reserve(part, size_bytes)
                    part.write(fetch())
                    part.flush()
                    # Not forced to disk: what a power cut leaves is recognised when it is read.
                    with self._locked(self.folder / _ROOM, keep=True):  # so that it is counted once
                        os.replace(part.name, path)
        return file

    def holds(self, sha256: str) -> bool:
        """Return whether the object `sha256` is here now."""
        return (self.folder / sha256).exists()

    def discard(self, sha256: str) -> None:
        """Remove the object `sha256`, because its file has turned out to be damaged."""
        (self.folder / sha256).unlink(missing_ok=True)

    def _reserve(self, part: BinaryIO, size_bytes: int) -> None:
        """Let `part` take `size_bytes`, so that all others see them taken, once there is room for them."""
        end = time.monotonic() + deadline_from_environment()
        while not self._reserved(part, size_bytes):
            if size_bytes > self.budget_bytes or time.monotonic() > end:
                raise DataError(
                    f"{self.folder}: the cache may hold {self.budget_bytes} bytes and has no room for "
                    f"another {size_bytes}, what it holds is in use; raise CAPSDIST_CACHE_BYTES"
                )
            time.sleep(_POLL_S)

    def _reserved(self, part: BinaryIO, size_bytes: int) -> bool:
        with self._locked(self.folder / _ROOM, keep=True):
            entries = sorted(_entries(self.folder, but=part.name))
            excess = sum(size for _, size, _ in entries) + size_bytes - self.budget_bytes
            for _, size, path in entries:
                if excess > 0 and _removed(path):
                    excess -= size
            if excess <= 0:
                part.truncate(size_bytes)
            return excess <= 0

    @contextlib.contextmanager
    def _locked(self, path: Path, keep: bool = False) -> Iterator[BinaryIO]:
        """Hold the file `path`, made if need be, alone; remove it at the end if it still has this name."""
        limit_s = 1.5 * deadline_from_environment()  # longer than a download that is going to fail takes
        end = time.monotonic() + limit_s
        while (file := _locked_now(path)) is None:
            if time.monotonic() > end:
                raise DataError(
                    f"{path}: another process has been writing it for {limit_s:.0f} s; end that process "
                    "if it hangs, or raise CAPSDIST_S3_DEADLINE_S"
                )
            time.sleep(_POLL_S)
        with file:
            try:
                yield file
            finally:
                if not keep and names(path, file.fileno()):
                    path.unlink()

    @contextlib.contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise DataError(
                f"{error.filename or self.folder}: the cache cannot be used ({reason}); "
                "set CAPSDIST_CACHE to another folder with room"
            ) from None


def _entries(folder: Path, but: str) -> Iterator[tuple[int, int, Path]]:
    """Yield last use, size in bytes and path of every file in `folder` except `but`."""
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
            status = entry.stat(follow_symlinks=False)
            if entry.path != but and stat.S_ISREG(status.st_mode):
                yield status.st_atime_ns, status.st_size, Path(entry.path)


def _opened(path: Path, size_bytes: int) -> BinaryIO | None:
    """Return the finished file `path` with a lock against its removal, None if it is not there or cut."""
    try:
        file = open(path, "rb", opener=open_regular)  # noqa: SIM115
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_size == size_bytes and names(path, file.fileno()):
        os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))  # used now
        return file
    with file:
        if names(path, file.fileno()):
            path.unlink()
    return None


def _locked_now(path: Path) -> BinaryIO | None:
    """Return the file `path` with its lock, None if another process has it."""
    file = open(path, "r+b", opener=lambda name, flags: open_lock_file(Path(name)))  # noqa: SIM115
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if names(path, file.fileno()):  # neither renamed nor removed before the lock was ours
            return file
    file.close()
    return None


def _removed(path: Path) -> bool:
    """Remove `path` unless a process has it locked; return whether it is gone."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True
