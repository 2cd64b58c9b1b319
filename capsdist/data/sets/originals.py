"""Get the original files of a data set: from a folder of the user, or from public mirrors, always checked."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np

from capsdist.errors import DataError
from capsdist.storage import is_remote
from capsdist.storage.durable import flush_folder
from capsdist.storage.temporary import remove_stale_folders, temporary_folder

__all__ = ["Original", "Splits", "content", "download", "find", "opened", "originals_folder"]

Splits: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]
"""Images uint8 [N,C,H,W] and labels int64 [N] of every split, by its name."""

_TIMEOUT_S = 30.0

MAX_BYTES = 512 << 20
"""Most bytes that are read of an original file, packed or not: the largest, CIFAR-10's, has 186 million."""


class Bounded(io.RawIOBase):
    """A file of which no more than `MAX_BYTES` are read, however much it would unpack to."""

    def __init__(self, file: IO[bytes], where: object) -> None:
        self._file, self._where, self._left = file, where, MAX_BYTES

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes, empty at the end.

        Raises:
            DataError: there are more than `MAX_BYTES`.
        """
        wanted = self._left + 1 if size < 0 else min(size, self._left + 1)
        data = self._file.read(wanted)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._where}: has more than {MAX_BYTES:,} bytes; get the original")
        return data


@dataclass(frozen=True)
class Original:
    """A published file: its name without .gz and the checksum of its uncompressed bytes.

    Uncompressed, because copies differ in the gzip header only (name, time). algorithm: "sha256" or
    "md5", whichever its authors publish or we can vouch for.
    """

    name: str
    checksum: str
    algorithm: str = "sha256"

    def check(self, data: bytes, where: object) -> bytes:
        """Return `data` if it is this file's content.

        Raises:
            DataError: if its checksum is another.
        """
        found = hashlib.new(self.algorithm, data, usedforsecurity=False).hexdigest()
        if found != self.checksum:
            raise DataError(
                f"{where}: {self.algorithm} of its content is {found}, the original has {self.checksum}; "
                "get the file again"
            )
        return data


def originals_folder(root: str | Path, name: str) -> Path:
    """Return the local folder of the downloaded files of data set `name`: in `root`, or in data for a URL."""
    return Path("data" if is_remote(root) else root, "originals", name)


def find(folder: Path, name: str, subfolders: Sequence[str] = ("",)) -> Path:
    """Return the path of `name` or `name`.gz in `folder` or in one of its `subfolders`.

    Raises:
        DataError: if there is none, naming the folder.
    """
    for subfolder in subfolders:
        for candidate in (folder / subfolder / name, folder / subfolder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise DataError(f"{folder}: holds neither {name} nor {name}.gz; give the folder of the original files")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Bounded]:
    """Open `path` for reading, through gzip if it is packed by it; see `Bounded`."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        yield Bounded(gzip.GzipFile(fileobj=file) if packed else file, path)  # type: ignore[arg-type]


def content(path: Path, original: Original | None = None) -> bytes:
    """Return the uncompressed bytes of `path`, compared with `original` if given.

    Raises:
        DataError: a file that cannot be read, broken gzip data, more than `MAX_BYTES`, a wrong checksum.
    """
    try:
        with opened(path) as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); get the file again") from None
    return original.check(data, path) if original else data


def download(urls: Sequence[str], target: Path, check: Callable[[Path], object], *, manual: str) -> Path:
    """Fetch `target` from the first of `urls` that delivers what `check` accepts; keep what is there.

    check: reads a path and raises DataError if it is not the wanted file. manual: what the error tells
    the user to do where no mirror works.

    Raises:
        DataError: no mirror could be reached or delivered the right file, with every mirror's reason.
    """
    if target.is_file():
        check(target)
        return target
    failures = []
    for url in urls:
        print(f"downloading {url}", flush=True)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_stale_folders(target.parent)
            with temporary_folder(parent=target.parent) as folder:
                _fetch(url, folder / target.name)
                check(folder / target.name)
                os.replace(folder / target.name, target)
                flush_folder(target.parent)
            return target
        except (OSError, DataError) as error:
            reason = getattr(error, "reason", None) or error
            failures.append(f"{url.split('/')[2]}: {reason}")
    raise DataError(f"cannot download {target.name} ({'; '.join(failures)}); {manual}")


def _fetch(url: str, target: Path) -> None:
    """Write what `url` delivers to the new file `target`, and have it on disk."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, target.open("xb") as file:
        shutil.copyfileobj(Bounded(response, url), file)
        file.flush()
        os.fsync(file.fileno())
