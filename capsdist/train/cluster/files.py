"""Where the files of a run lie: a folder that all machines see, or a prefix in object storage.

Ours. `open_files` chooses; `remote.py` has the other kind, and nothing above knows which one it is. A
checkpoint is a folder whose manifest appears last: here by a rename of the whole, there as the last write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from capsdist.errors import RunError
from capsdist.train.cluster.locks import Lock, Tell, file_lock

__all__ = ["LOCK_NAME", "MANIFEST", "LocalFiles", "RunFiles", "is_url", "open_files"]

LOCK_NAME = ".lock"
MANIFEST = "manifest.json"
_PARTIAL = ".partial-"


class RunFiles(Protocol):
    """The files of one run, by name; `str` of it is what people are told. All methods raise RunError."""

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

    def lock(self, tell: Tell) -> AbstractContextManager[Lock]:
        """Hold the run for this process; `tell` hears why it takes a while."""
        ...

    def path(self, name: str) -> str:
        """Return what a file is called in messages."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None without one."""
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


def is_url(path: str) -> bool:
    """Return whether `path` is a URL; `capsdist.storage` knows more, and takes a while to import."""
    return "://" in path


def open_files(place: str | os.PathLike[str]) -> RunFiles:
    """Return the files of the run at `place`: a local path or an s3:// URL.

    Raises:
        RunError: a URL of another kind, or one with credentials.
    """
    text = os.fspath(place)
    if is_url(text) and not text.startswith("file://"):
        from capsdist.train.cluster.remote import ObjectFiles  # late: local runs need no client

        return ObjectFiles(text)
    return LocalFiles(Path(text.removeprefix("file://")))


class LocalFiles:
    """A run in a folder. Methods: see `RunFiles`."""

    def __init__(self, folder: Path) -> None:
        self.local, self.name = folder, folder.name

    def __str__(self) -> str:
        return str(self.local)

    def create(self) -> None:
        """Make the folder and write a file into it."""
        probe = self.local / f".probe-{os.getpid()}"
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunError(
                f"train.storage={str(self.local.parent)!r}: cannot write {self.local} ({reason}); "
                "choose a writable folder with --train.storage"
            ) from None

    def lock(self, tell: Tell) -> AbstractContextManager[Lock]:
        """Lock a file."""
        return file_lock(self.local / LOCK_NAME, self.name)

    def path(self, name: str) -> str:
        """Return the path."""
        return str(self.local / name)

    def read(self, name: str) -> bytes | None:
        """Read the file."""
        try:
            return (self.local / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file beside it and rename that."""
        path = self.local / name
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror or error}); make room, or allow it"
            ) from None

    def delete(self, name: str) -> None:
        """Delete the file."""
        (self.local / name).unlink(missing_ok=True)

    def folders(self, prefix: str) -> dict[str, bool]:
        """Look into the folder."""
        found = sorted(path for path in self.local.glob(f"{prefix}*") if path.is_dir())
        return {path.name: (path / MANIFEST).exists() for path in found}

    @contextlib.contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """Make a hidden folder beside the others, so that a rename suffices.

        Its name is new each time: a worker that lives on at a host that was cut off removes only its own.
        """
        staged = self.local / f"{_PARTIAL}{name}-{uuid.uuid4().hex[:8]}"
        staged.mkdir()
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def store(self, staged: Path, name: str) -> None:
        """Rename it, and have the new name on disk before anything is said about it.

        An older folder of this name goes only for a whole new one: a worker that was given up and wakes up
        late finds that its successor's `remove_staged` has taken its own away, and does no harm.
        """
        target = self.local / name
        try:
            staged.rename(target)
        except FileNotFoundError:
            raise RunError(
                f"{staged}: is gone, because another start of this run has taken over; leave it to that one"
            ) from None
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            old = staged.with_name(f"{staged.name}-old")
            target.rename(old)
            staged.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        descriptor = os.open(self.local, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """Yield the folder itself."""
        yield self.local / name

    def download(self, name: str, target: Path) -> None:
        """Copy the files."""
        shutil.copytree(self.local / name, target, dirs_exist_ok=True)

    def remove(self, name: str) -> None:
        """Remove the folder."""
        self.delete(f"{name}/{MANIFEST}")
        shutil.rmtree(self.local / name, ignore_errors=True)

    def remove_staged(self) -> None:
        """Remove hidden folders."""
        for staged in self.local.glob(f"{_PARTIAL}*"):
            shutil.rmtree(staged, ignore_errors=True)
