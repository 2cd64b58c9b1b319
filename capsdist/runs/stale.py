"""Remove what killed starts of runs have left: temporary folders, and runs that hold only a lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from capsdist.runs.files import RunFiles
from capsdist.runs.locks import LOCK_NAME
from capsdist.storage.durable import open_regular
from capsdist.storage.temporary import remove_stale_folders

__all__ = ["remove_left_behind", "removed_if_unbegun"]

_HOLDER = re.compile(rb"process \d+ on .+", re.DOTALL)
_YOUNG_S = 60.0  # its process may be about to lock it


def remove_left_behind(files: RunFiles) -> None:
    """Remove the temporary folders of killed processes, and runs beside `files` that have not begun."""
    remove_stale_folders()
    if files.local is None:  # in object storage a lock costs a request to see, and is taken over
        return
    with contextlib.suppress(OSError), os.scandir(files.local.parent) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _remove_if_unbegun(Path(entry.path), _YOUNG_S)


@contextlib.contextmanager
def removed_if_unbegun(files: RunFiles) -> Iterator[None]:
    """At the end of the context, remove the run's folder if nothing but a lock that nobody holds is in it."""
    try:
        yield
    finally:
        if files.local is not None and not files.local.is_symlink():
            _remove_if_unbegun(files.local, 0.0)


def _remove_if_unbegun(folder: Path, age_s: float) -> None:
    """Remove `folder` if nothing but a lock file of ours is in it, which nobody holds and which is so old."""
    with contextlib.suppress(OSError):
        if os.listdir(folder) != [LOCK_NAME]:
            return
        path = folder / LOCK_NAME
        descriptor = open_regular(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(descriptor)
            ours = status.st_uid == os.geteuid() and _HOLDER.fullmatch(os.read(descriptor, 300))
            if ours and time.time() - status.st_mtime >= age_s and os.listdir(folder) == [LOCK_NAME]:
                path.unlink()
                folder.rmdir()
        finally:
            os.close(descriptor)
