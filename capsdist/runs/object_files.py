"""A run in object storage: whole objects, each within a deadline and tried again (`capsdist.storage`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from capsdist.console import Log
from capsdist.errors import CheckpointError, DocumentError, RunError
from capsdist.runs.locks import LOCK_NAME, Lock, object_lock
from capsdist.storage import ObjectFolder, check_storage
from capsdist.storage.documents import MAX_BYTES
from capsdist.storage.temporary import temporary_folder
from capsdist.train.manifest import MANIFEST, parse_manifest

__all__ = ["ObjectFiles"]


class ObjectFiles:
    """A run below an s3:// URL. Methods: see `RunFiles`."""

    local = None

    def __init__(self, url: str) -> None:
        self._url = url
        self._objects = ObjectFolder(url, error=RunError)
        self.name = self._objects.place.prefix.rpartition("/")[2]

    def __str__(self) -> str:
        return str(self._objects)

    def create(self) -> None:
        """List, write, read and delete an object, in under 10 seconds."""
        check_storage(self._url, error=RunError)

    def lock(self, log: Log) -> AbstractContextManager[Lock]:
        """Keep an object alive."""
        return object_lock(self._objects, LOCK_NAME, self.name, log)

    def path(self, name: str) -> str:
        """Return the URL."""
        return self._objects.path(name)

    def read(self, name: str, *, max_bytes: int = MAX_BYTES) -> bytes | None:
        """Read the object."""
        try:
            return self._objects.read(name, max_bytes=max_bytes)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write the object, which is one request."""
        self._objects.write(name, content)

    def delete(self, name: str) -> None:
        """Delete the object."""
        self._objects.delete(name)

    def folders(self, prefix: str) -> dict[str, bool]:
        """List the objects; one whose name ends with a slash is a marker that other programs leave."""
        found: dict[str, bool] = {}
        for name in sorted(self._objects.sizes(prefix)):
            folder, slash, file = name.partition("/")
            if slash:
                found[folder] = found.get(folder, False) or file == MANIFEST
        return found

    @contextlib.contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """Make a temporary folder."""
        with temporary_folder() as folder:
            yield folder

    def store(self, staged: Path, name: str) -> None:
        """Upload the files, the manifest last; an older one of this name goes first."""
        self._objects.delete(f"{name}/{MANIFEST}")
        for path in sorted(staged.iterdir(), key=lambda path: path.name == MANIFEST):
            self._objects.write(f"{name}/{path.name}", path.read_bytes())

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """Download the objects into a temporary folder."""
        with temporary_folder() as folder:
            self.download(name, folder)
            yield folder

    def download(self, name: str, target: Path) -> None:
        """Read the manifest, then the objects that it names, and no more of them than it says.

        Raises:
            CheckpointError: an object is larger.
        """
        there = self._objects.sizes(f"{name}/")
        if f"{name}/{MANIFEST}" not in there:
            return
        content = self._copied(name, MANIFEST, MAX_BYTES, target)
        with contextlib.suppress(DocumentError):  # whoever verifies the checkpoint says what is wrong
            for file, entry in parse_manifest(content).files.items():
                if f"{name}/{file}" in there:
                    self._copied(name, file, entry.bytes, target)

    def _copied(self, name: str, file: str, max_bytes: int, target: Path) -> bytes:
        """Return the content of an object of the checkpoint `name`, which is now in the folder `target`."""
        path = self.path(f"{name}/{file}")
        try:
            content = self._objects.read(f"{name}/{file}", max_bytes=max_bytes)
        except FileNotFoundError:
            raise RunError(f"{path}: was deleted while it was read; start this run once at a time") from None
        except DocumentError as error:
            raise CheckpointError(f"checkpoint {self.path(name)} is damaged: {error}; delete it") from None
        try:
            (target / file).write_bytes(content)
        except OSError as error:
            raise RunError(
                f"{target / file}: cannot be written ({error.strerror or error}); make room there, or "
                "set TMPDIR to another folder"
            ) from None
        return content

    def remove(self, name: str) -> None:
        """Delete the objects."""
        self._objects.delete(f"{name}/{MANIFEST}")
        for object_name in self._objects.sizes(f"{name}/"):
            self._objects.delete(object_name)

    def remove_staged(self) -> None:
        """Do nothing: temporary folders are removed where they are; see `capsdist.storage.temporary`."""
