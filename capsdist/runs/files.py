"""The files of a run or a search in a `Folder`: how the folder is created, and how documents are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from capsdist.console import Log
from capsdist.errors import DocumentError, RunError
from capsdist.storage import Folder, open_folder

__all__ = ["create", "open_files", "read_document"]

T = TypeVar("T")


def open_files(place: str | os.PathLike[str], log: Log = lambda text: None) -> Folder:
    """Return the folder of the run at `place`: a local path or an s3:// URL.

    `log` is told of each folder that lies in the place of a file and is moved aside.

    Raises:
        RunError: a URL of another kind, or one with credentials. Methods of the folder raise it too.
    """
    return open_folder(place, error=RunError, log=log)


def create(files: Folder) -> None:
    """Create the folder of a run and check in under 10 seconds that it can be written.

    Raises:
        RunError: it cannot; one line, with the remedy.
    """
    try:
        files.check_writable()
    except RunError as error:
        if files.local is None:
            raise
        raise RunError(f"train.storage={str(files.parent)!r}: {error} with --train.storage") from None


def read_document(files: Folder, name: str, parse: Callable[[bytes], T]) -> T | None:
    """Return what `parse` makes of the JSON file `name`, None if there is no such file.

    Raises:
        DocumentError: it is damaged or foreign; names it. RunError: the storage cannot be read.
    """
    content = files.read(name)
    try:
        return None if content is None else parse(content)
    except DocumentError as error:
        raise DocumentError(f"{files.path(name)} {error}") from None
