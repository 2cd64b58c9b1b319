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
from typing import IO, BinaryIO, TypeAlias

import numpy as np

from capsdist.errors import DataError
from capsdist.storage import is_remote
from capsdist.storage.durable import flush_folder
from capsdist.storage.temporary import remove_stale_folders, temporary_folder

__all__ = [
    "Original", "Splits", "check_file", "content", "download", "find", "open_checked", "opened",
    "originals_folder", "unpacked",
]  # fmt: skip

Splits: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]
"""Images uint8 [N,C,H,W] and labels int64 [N] of every split, by its name."""

_TIMEOUT_S = 30.0
_GZIP = b"\x1f\x8b"  # how gzip data start

MAX_BYTES = 600 << 20
"""Most bytes that are read of an original file, packed or not: the largest, EMNIST's zip, has 562 million."""


class Bounded(io.RawIOBase):
    """A file of which at most `most` bytes (0: `MAX_BYTES`) are read, however much it would unpack to."""

    def __init__(self, file: IO[bytes], where: object, most: int = 0) -> None:
        self._file, self._where, self._most = file, where, most or MAX_BYTES
        self._left = self._most

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes, empty at the end.

        Raises:
            DataError: there are more than the limit.
        """
        wanted = self._left + 1 if size < 0 else min(size, self._left + 1)
        data = self._file.read(wanted)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._where}: has more than {self._most:,} bytes; get the original")
        return data


@dataclass(frozen=True)
class Original:
    """A published file: its name without .gz and the checksum of its uncompressed bytes.

    Uncompressed, because copies differ in the gzip header only (name, time). algorithm: "sha256" or
    "md5", whichever its authors publish or we can vouch for. packed: the checksum is that of the file as it
    is published, packed by gzip, because that of its content is not known.
    """

    name: str
    checksum: str
    algorithm: str = "sha256"
    packed: bool = False

    def check(self, data: bytes, where: object) -> bytes:
        """Return `data` if it is this file's content, or the file itself if `packed`.

        Raises:
            DataError: if its checksum is another.
        """
        self.compare(hashlib.new(self.algorithm, data, usedforsecurity=False).hexdigest(), where)
        return data

    def check_file(self, file: io.BufferedReader, where: object) -> None:
        """Check the bytes of an open `file`, read in parts, and go back to its start.

        Raises:
            DataError: if its checksum is another.
        """
        digest = hashlib.file_digest(file, lambda: hashlib.new(self.algorithm, usedforsecurity=False))
        self.compare(digest.hexdigest(), where)
        file.seek(0)

    def compare(self, found: str, where: object) -> None:
        """Check that `found` is the checksum; `where` names the file in the error.

        Raises:
            DataError: if it is another.
        """
        if found != self.checksum:
            part = "the packed file" if self.packed else "its content"
            raise DataError(
                f"{where}: {self.algorithm} of {part} is {found}, the original has {self.checksum}; "
                "get the file again"
            )


def originals_folder(root: str | Path, name: str) -> Path:
    """Return the local folder of the downloaded files of data set `name`: in `root`, or in data for a URL."""
    return Path("data" if is_remote(root) else root, "originals", name)


def find(folder: Path, name: str, subfolders: Sequence[str] = ("",), *, packed: bool = False) -> Path:
    """Return the path of `name` or `name`.gz in `folder` or in one of its `subfolders`.

    packed: where both are there, take `name`.gz: the one whose checksum is known.

    Raises:
        DataError: if there is none, naming the folder.
    """
    for subfolder in subfolders:
        candidates = [folder / subfolder / name, folder / subfolder / f"{name}.gz"]
        for candidate in reversed(candidates) if packed else candidates:
            if candidate.is_file():
                return candidate
    raise DataError(f"{folder}: holds neither {name} nor {name}.gz; give the folder of the original files")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Bounded]:
    """Open `path` for reading, through gzip if it is packed by it; see `Bounded`."""
    with path.open("rb") as file:
        yield _through_gzip(file, path)


def _through_gzip(file: BinaryIO, where: object) -> Bounded:
    packed = file.read(2) == _GZIP
    file.seek(0)
    return Bounded(gzip.GzipFile(fileobj=file) if packed else file, where)  # type: ignore[arg-type]


def content(path: Path, original: Original | None = None) -> bytes:
    """Return the uncompressed bytes of `path`, compared with `original` if given.

    An unpacked copy of a file of which only the packed file's checksum is known is returned unchecked: the
    caller checks what it holds.

    Raises:
        DataError: a file that cannot be read, broken gzip data, more than `MAX_BYTES`, a wrong checksum.
    """
    with _readable(path), path.open("rb") as file:
        if original and original.packed:
            raw = Bounded(file, path).read()
            return unpacked(original.check(raw, path), path) if raw.startswith(_GZIP) else raw
        data = _through_gzip(file, path).read()
    return original.check(data, path) if original else data


def unpacked(data: bytes, where: object) -> bytes:
    """Return `data` unpacked if it is packed by gzip, otherwise as it is; `where` names it in errors.

    Raises:
        DataError: broken gzip data, or more than `MAX_BYTES`.
    """
    with _readable(where):
        return _through_gzip(io.BytesIO(data), where).read()


@contextlib.contextmanager
def open_checked(path: Path, original: Original | None = None) -> Iterator[io.BufferedReader]:
    """Open a file that may be larger than memory; its bytes as they are are compared with `original`.

    Raises:
        DataError: a file that cannot be read, or a wrong checksum.
    """
    with contextlib.ExitStack() as stack:
        with _readable(path):
            file = stack.enter_context(path.open("rb"))
            if original:
                original.check_file(file, path)
        yield file


def check_file(original: Original, path: Path) -> None:
    """Compare the bytes of the file `path`, as they are, with `original`.

    Raises:
        DataError: a file that cannot be read, or a wrong checksum.
    """
    with open_checked(path, original):
        pass


@contextlib.contextmanager
def _readable(where: object) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{where}: cannot be read ({reason}); get the file again") from None


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
