"""Write, replace and remove files so that neither a crash nor a symbolic link damages anything.

A file appears under its name whole and on disk, or not at all: it is written beside it, flushed, renamed,
and the folder is flushed (a rename is atomic, but not durable before that). Symbolic links in the place of a
file or folder are replaced or removed themselves; what they point to is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = [
    "TEMPORARY", "flush_folder", "make_way", "names", "open_lock_file", "open_regular", "remove_file",
    "remove_temporaries", "remove_tree", "replacing", "write_durably",
]  # fmt: skip

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}(\.[^.]+)?")
"""Names of the files that `replacing` writes first."""


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o666, new: bool = False) -> Iterator[Path]:
    """Yield a temporary file beside `path` to fill, which takes its place at the end of the context.

    The temporary name keeps the suffix of `path`, for libraries that choose a format by it, and begins with a
    dot. It is removed if the context ends with an exception. `mode`: permissions, less those that the umask
    takes away. `new`: nothing is replaced.

    Raises:
        OSError: it cannot be written. FileExistsError: `new`, and there is a file or link already.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if not new or not _linked(temporary, path):
            os.replace(temporary, path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _linked(temporary: Path, path: Path) -> bool:
    """Give the file a second name that is new; False on a file system without hard links.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(temporary, path)
    except OSError:
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        return False
    return True


def write_durably(path: Path, content: bytes, *, mode: int = 0o666, new: bool = False) -> None:
    """Write `content` to `path`; a reader sees the old file or the whole new one, also after a power cut.

    Raises:
        OSError: it cannot be written. FileExistsError: `new`, and there is a file or link already.
    """
    with replacing(path, mode=mode, new=new) as temporary:
        temporary.write_bytes(content)


def flush_folder(folder: Path) -> None:
    """Have the names in `folder` on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_way(path: Path, *, fits: bool, wanted: str, log: Callable[[str], None]) -> None:
    """Rename what a stranger has put in the place of `path`, unless it `fits`; removing it is not for us.

    Its new name is beside the old one; `log` is told of it, and what was `wanted`.

    Raises:
        OSError: it cannot be renamed.
    """
    if os.path.lexists(path) and not fits:
        aside = path.with_name(f"{path.name}.aside-{uuid.uuid4().hex[:8]}")
        path.rename(aside)
        log(f"warning: {path} is not {wanted}; moved it to {aside.name}")


def remove_file(path: Path) -> None:
    """Remove the file or symbolic link `path`, if it is there, unless a link leads to its folder."""
    if not path.parent.is_symlink():
        path.unlink(missing_ok=True)


def remove_temporaries(folder: Path, temporary: re.Pattern[str] = TEMPORARY) -> None:
    """Remove the files in `folder`, named like `temporary`, that a process which was killed has left."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if temporary.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                os.unlink(entry)


def remove_tree(folder: Path, *, first: str | None = None) -> None:
    """Remove `folder` with all that is in it, its file `first` before the others; of a link only the link.

    A file in the place of the folder is removed. Files that cannot be removed stay.
    """
    if folder.is_symlink() or not folder.is_dir():
        with contextlib.suppress(OSError):
            folder.unlink(missing_ok=True)
        return
    if first is not None:
        with contextlib.suppress(OSError):
            (folder / first).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def open_lock_file(path: Path, *, mode: int = 0o600) -> int:
    """Return a descriptor, open for reading and writing, of the file `path` to lock; it is made if need be.

    Raises:
        OSError: as `open_regular`.
    """
    return open_regular(path, os.O_RDWR | os.O_CREAT, mode)


def open_regular(path: str | Path, flags: int, mode: int = 0o600) -> int:
    """Return a descriptor of the regular file `path`, opened with `flags`; it fits as an opener of `open`.

    Raises:
        OSError: it cannot be opened or made, is a symbolic link (ELOOP), or another special file, whose
            opening does not wait for anybody.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))
    return descriptor


def names(path: Path, descriptor: int) -> bool:
    """Return whether `path` itself, not what a link there leads to, is the open file or folder `descriptor`.

    A process that has waited for a lock asks: the file may have been removed or replaced before.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
