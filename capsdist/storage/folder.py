"""One interface to a folder of files, on a file system or in object storage.

`open_folder` returns a `LocalFolder` or an `S3Folder`. Data sets, runs and searches use the methods of
`Folder`, and ask for `local` only where a file is appended to, locked or read in place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from capsdist.errors import CapsdistError, DataError
from capsdist.storage.documents import MAX_BYTES
from capsdist.storage.durable import TEMPORARY
from capsdist.storage.place import is_remote

__all__ = ["Folder", "open_folder"]


class Folder(Protocol):
    """The files below a path or URL, by their names relative to it; `str` returns the path or URL.

    If the storage fails, every method raises the `error` of `open_folder`: one line that names the file, the
    reason and the remedy. Symbolic links are followed to read, never to write or remove.
    """

    @property
    def name(self) -> str:
        """Last part of the path or URL."""
        ...

    @property
    def local(self) -> Path | None:
        """Path of the folder, None in object storage."""
        ...

    @property
    def parent(self) -> Folder | None:
        """The folder above, None directly below a bucket: that may hold millions of objects."""
        ...

    def path(self, name: str) -> str:
        """Return the path or URL of the file `name`, for messages."""
        ...

    def read(self, name: str, *, max_bytes: int = MAX_BYTES, sha256: str | None = None) -> bytes | None:
        """Return the content of the file `name`, None if there is no such file.

        Raises:
            DocumentError: it is larger than `max_bytes`, a folder or another special file, or on a local file
                system has another `sha256`; names the file, and is completed by the caller.
            error: in object storage the content still had another `sha256` after three attempts.
        """
        ...

    def write(
        self, name: str, content: bytes, *, new: bool = False, metadata: dict[str, str] | None = None
    ) -> bool:
        """Write the file `name`; a reader sees the old file or the whole new one.

        Args:
            name: Name of the file.
            content: All of its bytes.
            new: Write only if there is no such file.
            metadata: Stored with an object; without effect on a local file system.

        Returns:
            False if `new` and there was a file with other content, else True.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete the file `name` if it exists."""
        ...

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of every file, at any depth, whose name begins with `prefix`."""
        ...

    def matches(self, name: str, size_bytes: int, sha256: str) -> bool:
        """Return whether the file `name` is stored with this content, without a download."""
        ...

    def open(self, name: str, *, size_bytes: int, sha256: str) -> BinaryIO:
        """Return the file `name` open for reading: in place, or its copy in the cache of this node.

        An object is downloaded if the node has no copy, and its size and checksum are compared then; a file
        that is read in place is not checked.

        Raises:
            MissingDataError: there is no such file.
            OSError: it cannot be opened.
            DocumentError: the object has another size; names it.
        """
        ...

    def is_near(self, sha256: str) -> bool:
        """Return whether `open` needs no download for the file with this checksum."""
        ...

    def discard_copy(self, sha256: str) -> Path | None:
        """Remove the damaged copy of a file; return the folder of copies, None if files are read in place."""
        ...

    def folders(self, prefix: str, marker: str = "") -> dict[str, bool]:
        """Return all folders whose names begin with `prefix`, in order, and whether they have a `marker`."""
        ...

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """Yield an empty local folder to fill, which `store` makes the folder `name`."""
        ...

    def store(self, staged: Path, name: str, *, marker: str) -> None:
        """Make the staged folder the folder `name`; its file `marker` appears when all others are there.

        Raises:
            FileNotFoundError: `remove_stale` of another process has removed the staged folder.
        """
        ...

    def fetched(
        self, name: str, max_bytes: Mapping[str, int], *, at: Path | None = None
    ) -> AbstractContextManager[Path]:
        """Yield a local folder with files of the folder `name`, while the context is open.

        Args:
            name: Name of the folder.
            max_bytes: Names of the files, each with the largest size in bytes that is read; files that do
                not exist are left out.
            at: Path of the copy, if one is made; by default that of a new temporary folder.

        Raises:
            DocumentError: an object is larger; names it.
            FileExistsError: there is a copy at `at` already.
        """
        ...

    def remove(self, name: str, *, marker: str) -> None:
        """Remove the folder `name`, its file `marker` first; of a symbolic link only the link."""
        ...

    def remove_stale(self) -> None:
        """Remove what `staging` and `write` of a killed process have left."""
        ...

    def check_readable(self, *, thing: str = "data set", remedy: str = "") -> None:
        """Check in under 10 seconds that the folder exists; an object in it is listed and read.

        Raises:
            MissingDataError: there is nothing; the message names `thing` and ends with `remedy`.
        """
        ...

    def check_writable(self) -> None:
        """Create the folder and check in under 10 seconds that files can be written to it."""
        ...

    def writing(self, temporary: re.Pattern[str] = TEMPORARY) -> AbstractContextManager[None]:
        """Check that the folder can be written, and hold it while several files are written.

        Files that match `temporary`, which a killed process has left, are removed if no other process holds
        the folder.
        """
        ...


def open_folder(
    place: str | os.PathLike[str],
    *,
    error: type[CapsdistError] = DataError,
    log: Callable[[str], None] | None = None,
) -> Folder:
    """Return the folder at `place`: a local path, a file:// or an s3:// URL. Nothing is read or created.

    With `log`, a local folder that lies in the place of a file to write or delete is moved aside, and `log`
    is told; without, that is an error.

    Raises:
        error: a URL of another kind, one with credentials, or one that pathlib has damaged.
    """
    text = os.fspath(place)
    if text.startswith("s3:/") and not text.startswith("s3://"):
        raise error(f"{text}: lost a slash in pathlib; hand s3:// URLs over as text")
    if is_remote(text):
        from capsdist.storage.s3_folder import S3Folder  # late: local runs need no client

        return S3Folder(text, error=error)
    from capsdist.storage.local_folder import LocalFolder

    return LocalFolder(Path(text.removeprefix("file://")), error=error, log=log)
