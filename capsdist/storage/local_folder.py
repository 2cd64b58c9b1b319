"""`LocalFolder`: a `Folder` on a file system that all machines of a run see. Files are read in place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from capsdist.errors import CapsdistError, DataError, DocumentError, MissingDataError
from capsdist.storage.documents import MAX_BYTES, read_file
from capsdist.storage.durable import (
    TEMPORARY,
    flush_folder,
    make_way,
    remove_temporaries,
    remove_tree,
    write_durably,
)

__all__ = ["LocalFolder"]

_PARTIAL = ".partial-"
_PROBE_BYTES = 65536  # more than a full disk takes


class LocalFolder:
    """A folder on a file system. Methods: see `Folder`; `error` and `log`: see `open_folder`."""

    def __init__(
        self,
        path: Path,
        *,
        error: type[CapsdistError] = DataError,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.local, self.name, self._error, self._log = path, path.name, error, log

    def __str__(self) -> str:
        return str(self.local)

    @property
    def parent(self) -> LocalFolder:
        """The folder above."""
        return LocalFolder(self.local.parent, error=self._error)

    def path(self, name: str) -> str:
        """Return the path."""
        return str(self.local / name)

    def read(self, name: str, *, max_bytes: int = MAX_BYTES, sha256: str | None = None) -> bytes | None:
        """Read the file."""
        try:
            content = read_file(self.local / name, max_bytes=max_bytes)
        except FileNotFoundError:
            return None
        except DocumentError as error:
            raise DocumentError(f"{self.path(name)} {error}") from None
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise DocumentError(f"{self.path(name)}: wrong sha256, the file is damaged")
        return content

    def write(
        self, name: str, content: bytes, *, new: bool = False, metadata: dict[str, str] | None = None
    ) -> bool:
        """Write a temporary file beside it and rename or link that; the folder of the file may be new."""
        with self._changing(name):
            self._make_way(name)
            if (parent := (self.local / name).parent) != self.local:
                parent.mkdir(exist_ok=True)
            try:
                write_durably(self.local / name, content, new=new)
            except FileExistsError:
                return self.matches(name, len(content), hashlib.sha256(content).hexdigest())
        return True

    def delete(self, name: str) -> None:
        """Delete the file."""
        with self._changing(name):
            self._make_way(name)
            (self.local / name).unlink(missing_ok=True)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Walk through the folder; links to folders are not followed."""
        found: dict[str, int] = {}
        for folder, _, names in os.walk(self.local):
            for path in (Path(folder, name) for name in names):
                name = path.relative_to(self.local).as_posix()
                if name.startswith(prefix):
                    with contextlib.suppress(OSError):  # removed meanwhile, or a link to nothing
                        found[name] = path.stat().st_size
        return found

    def matches(self, name: str, size_bytes: int, sha256: str) -> bool:
        """Read the file and compare its checksum."""
        try:
            return self.read(name, max_bytes=size_bytes, sha256=sha256) is not None
        except DocumentError:
            return False

    def open(self, name: str, *, size_bytes: int, sha256: str) -> BinaryIO:
        """Open the file."""
        try:
            return open(self.local / name, "rb", buffering=0, opener=_opener)
        except FileNotFoundError:
            raise MissingDataError(f"{self.path(name)}: there is no such file") from None

    def is_near(self, sha256: str) -> bool:
        """Return True."""
        return True

    def discard_copy(self, sha256: str) -> Path | None:
        """Return None: there are no copies."""
        return None

    def folders(self, prefix: str, marker: str = "") -> dict[str, bool]:
        """List the folder; links to folders count."""
        found = sorted(path for path in self.local.glob(f"{prefix}*") if os.path.isdir(path))
        return {path.name: os.path.exists(path / marker) for path in found}

    @contextlib.contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """Make a hidden folder beside the others, so that a rename suffices.

        Its name is new each time: a worker that lives on at a host that was cut off removes only its own.
        """
        staged = self.local / f"{_PARTIAL}{name}-{uuid.uuid4().hex[:8]}"
        with self._changing(staged.name):
            staged.mkdir()
        try:
            yield staged
        finally:
            remove_tree(staged)

    def store(self, staged: Path, name: str, *, marker: str) -> None:
        """Rename it, and have the new name on disk before the call returns.

        An older folder of this name is removed only if the staged one exists: a process that was given up and
        wakes up late finds that `remove_stale` of its successor has removed its own, and does no harm.
        """
        target = self.local / name
        with self._changing(name, passing=FileNotFoundError):
            flush_folder(staged)
            try:
                staged.rename(target)
            except OSError as error:  # a folder, a file or a link in its place
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                    raise
                old = staged.with_name(f"{staged.name}-old")
                target.rename(old)
                staged.rename(target)
                remove_tree(old)
            flush_folder(self.local)

    @contextlib.contextmanager
    def fetched(self, name: str, max_bytes: Mapping[str, int], *, at: Path | None = None) -> Iterator[Path]:
        """Yield the folder itself."""
        yield self.local / name

    def remove(self, name: str, *, marker: str) -> None:
        """Remove the folder, or the link in its place."""
        remove_tree(self.local / name, first=marker)

    def remove_stale(self) -> None:
        """Remove hidden folders and temporary files."""
        for staged in self.local.glob(f"{_PARTIAL}*"):
            remove_tree(staged)
        remove_temporaries(self.local)

    def check_readable(self, *, thing: str = "data set", remedy: str = "") -> None:
        """Look for the folder."""
        if not self.local.is_dir():
            raise MissingDataError(f"{self}: there is no such {thing}; {remedy or 'correct the path'}")

    def check_writable(self) -> None:
        """Make the folder and write a file into it."""
        probe = self.local / f".probe.{uuid.uuid4().hex[:8]}"  # matches TEMPORARY
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            try:
                with probe.open("xb") as file:
                    file.write(bytes(_PROBE_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                probe.unlink(missing_ok=True)
            with contextlib.suppress(PermissionError):  # one may enter the folder above, but not list it
                flush_folder(self.local.parent)
        except OSError as error:
            reason = error.strerror or error
            raise self._error(f"{self}: cannot be written ({reason}); choose a writable folder") from None

    @contextlib.contextmanager
    def writing(self, temporary: re.Pattern[str] = TEMPORARY) -> Iterator[None]:
        """Lock the folder, shared by all processes that write into it."""
        self.check_writable()
        lock = os.open(self.local, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # another process holds it, or the file system has no locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_temporaries(self.local, temporary)
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH)
            yield
        finally:
            os.close(lock)

    def _make_way(self, name: str) -> None:
        """Move a folder in the place of a file aside, with what is in it."""
        path = self.local / name
        if self._log:
            make_way(path, fits=path.is_symlink() or not path.is_dir(), wanted="a file", log=self._log)

    @contextlib.contextmanager
    def _changing(self, name: str, passing: type[OSError] | tuple[()] = ()) -> Iterator[None]:
        """Translate errors of the file system into `error`, except those of type `passing`."""
        try:
            yield
        except passing:
            raise
        except OSError as error:
            reason = error.strerror or error
            raise self._error(
                f"{self.path(name)}: cannot be written ({reason}); make room there, or choose a writable "
                "folder"
            ) from None


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a named pipe must not wait for its writer
