"""Temporary folders that are removed even if the process that made them was killed.

A folder is locked (`flock`) by its process for as long as that lives. A process that starts removes the
folders of this user in the same place that nobody has locked. It never follows a symbolic link.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from capsdist.storage.durable import names, remove_tree

__all__ = ["remove_stale_folders", "temporary_folder"]

# Version 0.1 did not lock its folders, and named them without the suffix: they may be in use, and stay.
_PREFIX, _SUFFIX = "capsdist-", ".tmp"
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}\{_SUFFIX}")


@contextlib.contextmanager
def temporary_folder(at: Path | None = None, *, parent: Path | None = None) -> Iterator[Path]:
    """Yield a new, empty folder that only this user can enter; it is removed at the end of the context.

    at: the path of a temporary folder of another machine, to have it here as well. parent: the folder to
    make it in, by default that of `tempfile`.

    Raises:
        FileExistsError: `at` exists already.
        OSError: it cannot be made.
    """
    folder, descriptor = _made(at, parent)
    try:
        yield folder
    finally:
        remove_tree(folder)
        os.close(descriptor)


def remove_stale_folders(parent: Path | None = None) -> None:
    """Remove the temporary folders that processes of this user, which were killed, have left in `parent`.

    A folder that is locked, or that cannot be locked or removed, stays.
    """
    with contextlib.suppress(OSError), os.scandir(parent or tempfile.gettempdir()) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_left(Path(entry.path))


def _made(at: Path | None, parent: Path | None) -> tuple[Path, int]:
    """Return a new folder and the descriptor that holds its lock."""
    while True:
        if at is None:
            folder = Path(tempfile.mkdtemp(_SUFFIX, _PREFIX, parent))
        else:
            folder = at
            folder.mkdir(mode=0o700, parents=True)
        # A process that removes leftovers may see the folder before it is locked. Then another one is made.
        with contextlib.suppress(FileNotFoundError):
            descriptor = _opened(folder)
            # Shared: a data set that is packed into the folder locks it as well.
            with contextlib.suppress(OSError):  # a file system without locks: nobody can remove it either
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if names(folder, descriptor):
                return folder, descriptor
            os.close(descriptor)


def _remove_if_left(folder: Path) -> None:
    """Remove `folder`, if it is a folder of this user that nobody has locked."""
    descriptor = _opened(folder)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if names(folder, descriptor):
                remove_tree(folder)
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
