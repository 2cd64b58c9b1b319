"""The files of a run: a folder that all machines see, or a prefix in object storage.

`open_files` chooses; `remote.py` has the other kind, and nothing above knows which one it is. A
checkpoint is a folder whose manifest appears last: here by a rename of the whole, there as the last write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from capsdist.console import Log
from capsdist.errors import DocumentError, RunError
from capsdist.runs.locks import LOCK_NAME, Lock, file_lock
from capsdist.storage.documents import MAX_BYTES, read_file
from capsdist.storage.durable import (
    flush_folder,
    move_aside,
    remove_temporaries,
    remove_tree,
    write_durably,
)
from capsdist.storage.place import is_url
from capsdist.train.manifest import MANIFEST

__all__ = ["LocalFiles", "RunFiles", "open_files", "read_document"]

T = TypeVar("T")

_PARTIAL = ".partial-"
_PROBE_BYTES = 65536  # more than a full disk takes


class RunFiles(Protocol):
    """The files of one run, by name; `str` of it is what people are told. All methods raise RunError.

    Symbolic links are followed to read, never to write, lock or remove: a link goes, its target stays.
    """

    @property
    def name(self) -> str:
        """Name of the run."""
        ...

    @property
    def local(self) -> Path | None:
        """The folder, None in object storage."""
        ...

    def create(self) -> None:
        """Make the place and prove that it can be written."""
        ...

    def lock(self, log: Log) -> AbstractContextManager[Lock]:
        """Hold the run for this process; `log` hears why it takes a while."""
        ...

    def path(self, name: str) -> str:
        """Return what a file is called in messages."""
        ...

    def read(self, name: str, *, max_bytes: int = MAX_BYTES) -> bytes | None:
        """Return the content of a file, None without one.

        Raises:
            DocumentError: it is larger than `max_bytes`, or a folder or another special file; names it.
        """
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file; a reader sees the old one or the whole new one."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        ...

    def folders(self, prefix: str) -> dict[str, bool]:
        """Return the folders whose names begin with `prefix`, in order, and whether they have a manifest."""
        ...

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """Yield an empty local folder to fill, which `store` makes the folder `name`."""
        ...

    def store(self, staged: Path, name: str) -> None:
        """Make the staged folder the folder `name`; its manifest is there when everything else is."""
        ...

    def fetched(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local folder with the files of the folder `name`, while the context is open."""
        ...

    def download(self, name: str, target: Path) -> None:
        """Copy the files of the folder `name` into a local folder."""
        ...

    def remove(self, name: str) -> None:
        """Remove the folder `name`, its manifest first."""
        ...

    def remove_staged(self) -> None:
        """Remove what `staging` of a killed process has left."""
        ...


def read_document(files: RunFiles, name: str, parse: Callable[[bytes], T]) -> T | None:
    """Return what `parse` makes of the JSON file `name`, None without one.

    Raises:
        DocumentError: it is damaged or foreign; names it. RunError: the storage cannot be read.
    """
    content = files.read(name)
    try:
        return None if content is None else parse(content)
    except DocumentError as error:
        raise DocumentError(f"{files.path(name)} {error}") from None


def open_files(place: str | os.PathLike[str], log: Log = lambda text: None) -> RunFiles:
    """Return the files of the run at `place`: a local path or an s3:// URL.

    `log` is told of each folder that lies in the place of a file and is moved aside.

    Raises:
        RunError: a URL of another kind, or one with credentials.
    """
    text = os.fspath(place)
    if is_url(text) and not text.startswith("file://"):
        from capsdist.runs.object_files import ObjectFiles  # late: local runs need no client

        return ObjectFiles(text)
    return LocalFiles(Path(text.removeprefix("file://")), log)


class LocalFiles:
    """A run in a folder. Methods: see `RunFiles`; `log`: see `open_files`."""

    def __init__(self, folder: Path, log: Log = lambda text: None) -> None:
        self.local, self.name = folder, folder.name
        self._log = log

    def __str__(self) -> str:
        return str(self.local)

    def create(self) -> None:
        """Make the folder and write a file into it."""
        probe = self.local / f".probe.{uuid.uuid4().hex[:8]}"  # `remove_temporaries` knows such names
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            try:
                with probe.open("xb") as file:
                    file.write(bytes(_PROBE_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                probe.unlink(missing_ok=True)
            flush_folder(self.local.parent)
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunError(
                f"train.storage={str(self.local.parent)!r}: cannot write {self.local} ({reason}); "
                "choose a writable folder with --train.storage"
            ) from None

    def lock(self, log: Log) -> AbstractContextManager[Lock]:
        """Lock a file."""
        return file_lock(self.local / LOCK_NAME, self.name)

    def path(self, name: str) -> str:
        """Return the path."""
        return str(self.local / name)

    def read(self, name: str, *, max_bytes: int = MAX_BYTES) -> bytes | None:
        """Read the file."""
        try:
            return read_file(self.local / name, max_bytes=max_bytes)
        except FileNotFoundError:
            return None
        except DocumentError as error:
            raise DocumentError(f"{self.local / name} {error}") from None

    def write(self, name: str, content: bytes) -> None:
        """Write a file beside it and rename that."""
        with self._changing(name):
            self._make_way(name)
            write_durably(self.local / name, content)

    def delete(self, name: str) -> None:
        """Delete the file."""
        with self._changing(name):
            self._make_way(name)
            (self.local / name).unlink(missing_ok=True)

    def folders(self, prefix: str) -> dict[str, bool]:
        """Look into the folder."""
        found = sorted(path for path in self.local.glob(f"{prefix}*") if os.path.isdir(path))
        return {path.name: os.path.exists(path / MANIFEST) for path in found}

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

    def store(self, staged: Path, name: str) -> None:
        """Rename it, and have the new name on disk before anything is said about it.

        An older folder of this name goes only for a whole new one: a worker that was given up and wakes up
        late finds that its successor's `remove_staged` has taken its own away, and does no harm.
        """
        target = self.local / name
        with self._changing(name):
            try:
                flush_folder(staged)
                staged.rename(target)
            except FileNotFoundError:
                raise RunError(
                    f"{staged}: is gone, because another start of this run has taken over; leave it to that "
                    "one"
                ) from None
            except OSError as error:  # a folder, a file or a link in its place
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                    raise
                old = staged.with_name(f"{staged.name}-old")
                target.rename(old)
                staged.rename(target)
                remove_tree(old)
            flush_folder(self.local)

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """Yield the folder itself."""
        yield self.local / name

    def download(self, name: str, target: Path) -> None:
        """Copy the files."""
        shutil.copytree(self.local / name, target, dirs_exist_ok=True)

    def remove(self, name: str) -> None:
        """Remove the folder, or the link in its place."""
        remove_tree(self.local / name, first=MANIFEST)

    def remove_staged(self) -> None:
        """Remove hidden folders and temporary files."""
        for staged in self.local.glob(f"{_PARTIAL}*"):
            remove_tree(staged)
        remove_temporaries(self.local)

    def _make_way(self, name: str) -> None:
        """Move a folder in the place of a file aside, with what is in it."""
        path = self.local / name
        if path.is_dir() and not path.is_symlink():
            self._log(f"warning: {path} is a folder; moved it to {move_aside(path).name}")

    @contextlib.contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """Make of a disk's error one of ours, which is not tried again."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.local / name}: cannot be written ({error.strerror or error}); make room, or allow it"
            ) from None
