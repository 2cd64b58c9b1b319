"""Image files in a folder or an archive: their names and places are listed, their bytes read when wanted."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np

from capsdist.data.encoded.tars import MAX_IMAGE_BYTES
from capsdist.data.sets.originals import Bounded
from capsdist.errors import DataError

__all__ = ["Listing", "Places", "Tree", "add_folder", "add_tar", "readable", "tree_of"]

Container: TypeAlias = str | IO[bytes]
"""The path of a file, or an open temporary file."""

_MAX_UNPACKED = 16 << 30  # of a tar archive packed by gzip
# What the readers of archives raise at damaged ones.
_DAMAGE = (
    OSError, EOFError, ValueError, IndexError, OverflowError, RuntimeError, zlib.error, tarfile.TarError,
    zipfile.BadZipFile,
)  # fmt: skip
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Places:
    """Where files lie: in which of `containers`, at which offset, and how many bytes; int64 [n] each.

    zipped: the one container is a zip archive, and an offset is the number of a member.
    """

    containers: tuple[Container, ...]
    container: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    zipped: bool = False

    def __len__(self) -> int:
        return len(self.size)

    def take(self, ids: np.ndarray) -> Places:
        """Return the places `ids`, with the containers of those only: they can be sent to another process."""
        used, container = np.unique(self.container[ids], return_inverse=True)
        containers = tuple(self.containers[number] for number in used)
        return Places(containers, container.reshape(-1), self.offset[ids], self.size[ids], self.zipped)

    def where(self, row: int) -> str:
        """Return the name of file `row` for messages."""
        container = self.containers[self.container[row]]
        name = container if isinstance(container, str) else "the unpacked archive"
        if self.zipped:
            return f"{name}, member {self.offset[row]}"
        return f"{name}, byte {self.offset[row]}" if self.offset[row] else name

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[int], bytes]]:
        """Yield a function that returns the bytes of a file; several threads may call it.

        Raises:
            DataError: raised by the function: a file that cannot be read or has another size than was listed.
        """
        with contextlib.ExitStack() as stack:
            archive = None
            if self.zipped and isinstance(path := self.containers[0], str):
                with readable(path):
                    archive = stack.enter_context(zipfile.ZipFile(path))

            def content(row: int) -> bytes:
                where = self.where(row)
                with readable(where):
                    found = self._content(row, archive)
                if len(found) != self.size[row]:
                    raise DataError(f"{where}: has changed since it was listed, or is cut; get it again")
                return found

            yield content

    def _content(self, row: int, archive: zipfile.ZipFile | None) -> bytes:
        container, offset, size = self.containers[self.container[row]], self.offset[row], self.size[row]
        if archive is not None:
            return archive.read(archive.infolist()[offset])
        if not isinstance(container, str):
            return os.pread(container.fileno(), int(size), int(offset))
        with open(container, "rb") as file:
            return os.pread(file.fileno(), int(size), int(offset))


@dataclass(frozen=True)
class Tree:
    """The files of a data set: their names, relative to the folder of the set, and their places.

    source: what errors call it; stamp: changes when the files do.
    """

    names: Sequence[str]
    places: Places
    source: str
    stamp: str

    def matching(self, pattern: str) -> Iterator[tuple[int, re.Match[str]]]:
        """Yield the number and match of every file whose whole name matches `pattern`."""
        compiled = re.compile(pattern)
        for row, name in enumerate(self.names):
            if match := compiled.fullmatch(name):
                yield row, match

    def text(self, name: str) -> str | None:
        """Return the content of a text file, None without one.

        Raises:
            DataError: it is no UTF-8 text or cannot be read.
        """
        for row, _ in self.matching(re.escape(name)):
            with self.places.opened() as content:
                try:
                    return content(row).decode("utf-8")
                except UnicodeDecodeError:
                    raise DataError(f"{self.source}: {name} is no UTF-8 text; get the original") from None
        return None


class Listing:
    """Collects names and places; `tree` returns them. Memory: about 150 bytes a file."""

    def __init__(self, source: object) -> None:
        self._source, self._names = str(source), list[str]()
        self._containers: list[Container] = []
        self._columns = array("q"), array("q"), array("q")
        self._stamp = hashlib.sha256()

    def contain(self, container: Container, status: os.stat_result, name: str) -> int:
        """Add a container, whose `name`, size and time go into the stamp; return its number."""
        self._containers.append(container)
        self._stamp.update(repr((name, status.st_size, status.st_mtime_ns)).encode())
        return len(self._containers) - 1

    def add(self, name: str, container: int, offset: int, size: int) -> None:
        """Add a file.

        Raises:
            DataError: it has more than `MAX_IMAGE_BYTES`.
        """
        if size > MAX_IMAGE_BYTES:
            raise DataError(f"{self._source}: {name} has more than {MAX_IMAGE_BYTES:,} bytes; remove it")
        self._names.append(name)
        for column, value in zip(self._columns, (container, offset, size), strict=True):
            column.append(value)

    def tree(self, *, zipped: bool = False) -> Tree:
        """Return what was collected, names relative to the folder that holds the folder `train`."""
        root = next((name[: at.start()] for name in self._names if (at := _TRAIN.search(name))), "")
        names = [name.removeprefix(root) for name in self._names]
        columns = (
            np.frombuffer(column, np.int64) if column else np.empty(0, np.int64) for column in self._columns
        )
        places = Places(tuple(self._containers), *columns, zipped=zipped)
        return Tree(names, places, self._source, self._stamp.hexdigest())


_TRAIN = re.compile(r"(?<![^/])train/")


def tree_of(source: Path, scratch: Path) -> Tree:
    """Return the files of a folder, a zip or tar archive, or a tar archive packed by gzip.

    The last one is unpacked into an unnamed file in the folder `scratch`, which goes when it is not used any
    more: its members could not be read in another order.

    Raises:
        DataError: there is no such file, or an archive that cannot be read.
    """
    listing = Listing(source)
    if source.is_dir():
        add_folder(listing, source)
        return listing.tree()
    with readable(source):
        status = source.stat()
        if zipped := zipfile.is_zipfile(source):
            container = listing.contain(str(source), status, source.name)
            with zipfile.ZipFile(source) as archive:
                for number, member in enumerate(archive.infolist()):
                    if not member.is_dir():
                        listing.add(member.filename, container, number, member.file_size)
        else:
            file = _unpacked(source, scratch)
            add_tar(listing, file, listing.contain(file, status, source.name))
    return listing.tree(zipped=zipped)


def add_tar(listing: Listing, file: IO[bytes], container: int, prefix: str = "", start: int = 0) -> None:
    """Add the files of the tar archive at byte `start` of `file`, with `prefix` before their names.

    Raises:
        tarfile.TarError, OSError, ValueError, IndexError, OverflowError: it cannot be read.
    """
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[misc]  # it would keep every header in memory
            if member.isreg() and not member.issparse():
                listing.add(
                    prefix + member.name.removeprefix("./"), container, member.offset_data, member.size
                )


@contextlib.contextmanager
def readable(where: object) -> Iterator[None]:
    """Turn errors of reading `where` in the context into a `DataError`."""
    try:
        yield
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{where}: cannot be read ({reason}); get the file again") from None


def add_folder(
    listing: Listing, folder: Path, prefix: str = "", without: frozenset[str] = frozenset()
) -> None:
    """Add the files below `folder` in the order of their names, with `prefix` before their names.

    Archives, hidden files, and folders of the names `without` are left out.

    Raises:
        DataError: a folder that cannot be read.
    """
    with readable(folder), os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith(".") or entry.name in without:
            continue
        with readable(entry.path):
            status = entry.stat()
        if entry.is_dir():
            add_folder(listing, Path(entry.path), f"{prefix}{entry.name}/", without)
        elif entry.is_file() and not entry.name.endswith((".tar", ".zip", ".tgz", ".gz")):
            name = prefix + entry.name
            listing.add(name, listing.contain(entry.path, status, name), 0, status.st_size)


def _unpacked(source: Path, scratch: Path) -> IO[bytes]:
    """Return the tar archive `source`, unpacked into an unnamed file if it is packed by gzip."""
    file = source.open("rb")
    if file.read(2) != _GZIP:
        return file
    file.seek(0)
    scratch.mkdir(parents=True, exist_ok=True)
    target = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # read as long as its places are used
    with file, gzip.GzipFile(fileobj=file) as packed:
        shutil.copyfileobj(Bounded(packed, source, _MAX_UNPACKED), target, 1 << 20)  # type: ignore[arg-type]
    target.flush()
    return target
