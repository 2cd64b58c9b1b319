"""The files of a split: a local folder, or a prefix in object storage, with one interface.

`open_folder` chooses; `remote.py` has the other kind. Nothing above knows which one it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import xxhash

from capsdist.data.format.index import INDEX_NAME, KEPT, MAX_INDEX_BYTES, SHARD_NAME, Shard, missing_split
from capsdist.data.format.reading import FileDamagedError, Identity, identify, read_checked
from capsdist.errors import DataError, DocumentError
from capsdist.storage import is_remote
from capsdist.storage.documents import read_file
from capsdist.storage.durable import write_durably

__all__ = ["LocalFolder", "SplitFolder", "open_folder"]

# What a packing command that was killed leaves: temporary files of `durable.replacing` and of version 0.1.
_LEFTOVER = re.compile(
    r"\.(shard-[0-9]{5,9}\.[0-9a-f]{8}\.tar|index\.[0-9a-f]{8}\.json"
    r"|(shard-[0-9]{5,9}\.tar|index\.json)\.[0-9a-z_]{8})"
)


class SplitFolder(Protocol):
    """The files of one split; `str` of it is what errors call it. All methods raise DataError.

    is_near: a local disk; a far split is fetched ahead of use, and not read wholly before a run.
    """

    is_near: bool

    def check_access(self, remedy: str) -> None:
        """Check quickly that something is there and can be read; `remedy` ends the error if not."""
        ...

    def read_index(self, remedy: str) -> bytes:
        """Return the content of the index; `remedy` ends the error where there is none."""
        ...

    def check_sizes(self, shards: Sequence[Shard], remedy: str) -> None:
        """Check that every shard is there with its size, without reading any."""
        ...

    def read(self, shard: Shard, remedy: str) -> tuple[np.ndarray, Identity]:
        """Return all bytes of `shard`, uint8, once its checksum is right, and the identity of its file."""
        ...

    def open(self, shard: Shard, remedy: str) -> BinaryIO:
        """Return the file of `shard`, open for reading; nothing of it is compared."""
        ...

    def identify(self, file: BinaryIO) -> Identity:
        """Return the identity of a file from `open`, equal to that of `read` until its content changes."""
        ...

    def stored(self, shard: Shard, remedy: str) -> np.ndarray:
        """Return what is stored of `shard`, whatever a cache holds; its sha256 is the index's."""
        ...

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Begin to bring `shards` near, where they are far; return at once."""
        ...

    def packing(self) -> AbstractContextManager[None]:
        """Make the place and withdraw an index that is there, before shards are written in the context."""
        ...

    def holds(self, shard: Shard) -> bool:
        """Return whether `shard` is already stored as it should be."""
        ...

    def put(self, shard: Shard, content: bytes) -> None:
        """Store `shard`; no reader ever sees half of it."""
        ...

    def publish(self, shards: Sequence[Shard], index: str) -> None:
        """Remove shards that an older set left and store the index, which makes the split complete."""
        ...


def open_folder(folder: str | os.PathLike[str]) -> SplitFolder:
    """Return the split's folder named by `folder`: a local path, a file:// or an s3:// URL.

    Raises:
        DataError: a URL of another kind, or one that pathlib has damaged.
    """
    text = os.fspath(folder)
    if text.startswith("s3:/") and not text.startswith("s3://"):
        raise DataError(f"{text}: lost a slash in pathlib; hand s3:// URLs over as text")
    if is_remote(text):
        from capsdist.data.format.remote import RemoteFolder  # late: local runs need no client

        return RemoteFolder(text)
    return LocalFolder(Path(text.removeprefix("file://")))


class LocalFolder:
    """A split on a local disk: shards are read where they lie. Methods: see `SplitFolder`."""

    is_near = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def check_access(self, remedy: str) -> None:
        """Do nothing: reading the index says the same."""

    def read_index(self, remedy: str) -> bytes:
        """Read the file."""
        if not self.path.is_dir():
            raise DataError(
                missing_split(str(self), str(self.path.parent), _splits(self.path.parent), remedy)
            )
        try:
            return read_file(self.path / INDEX_NAME, max_bytes=MAX_INDEX_BYTES)
        except FileNotFoundError:
            if splits := _splits(self.path):
                raise DataError(
                    f"{self}: is a data set with the splits {', '.join(splits)}; name one of them"
                ) from None
            raise DataError(
                f"{self}: has no {INDEX_NAME}, so it was never packed to the end; {remedy}"
            ) from None
        except DocumentError as error:
            raise DataError(f"{self}/{INDEX_NAME}: {error}; {remedy}") from None

    def check_sizes(self, shards: Sequence[Shard], remedy: str) -> None:
        """Ask the file system."""
        for shard in shards:
            with self._one_line_reading(shard, remedy), self.open(shard, remedy) as file:
                size = os.fstat(file.fileno()).st_size
                if size != shard.size_bytes:
                    raise FileDamagedError(f"has {size} bytes instead of {shard.size_bytes}")

    def read(self, shard: Shard, remedy: str) -> tuple[np.ndarray, Identity]:
        """Read the file and compare its xxh3."""
        with self._one_line_reading(shard, remedy), self.open(shard, remedy) as file:
            identity = self.identify(file)
            return read_checked(file.fileno(), shard), identity

    def open(self, shard: Shard, remedy: str) -> BinaryIO:
        """Open the file."""
        with self._one_line_reading(shard, remedy):
            return open(self.path / shard.name, "rb", buffering=0, opener=_opener)

    def identify(self, file: BinaryIO) -> Identity:
        """Ask the file system; the time of change tells of an overwritten file whose times were put back."""
        return identify(file.fileno())

    def stored(self, shard: Shard, remedy: str) -> np.ndarray:
        """Read the file and compare its sha256."""
        content, _ = self.read(shard, remedy)
        if hashlib.sha256(content.data).hexdigest() != shard.sha256:
            path = self.path / shard.name
            raise DataError(f"{path}: wrong sha256, the file is damaged; {remedy or KEPT}")
        return content

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Do nothing: the shards are near."""

    @contextlib.contextmanager
    def packing(self) -> Iterator[None]:
        """Make the folder and remove the index, and what a killed packing command left if no other runs."""
        with self._one_line_writing():
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self._one_line_writing():
                self._clean(lock)
                (self.path / INDEX_NAME).unlink(missing_ok=True)
            yield
        finally:
            os.close(lock)

    def holds(self, shard: Shard) -> bool:
        """Compare size and content."""
        path = self.path / shard.name
        return (
            path.is_file()
            and path.stat().st_size == shard.size_bytes
            and xxhash.xxh3_128_hexdigest(path.read_bytes()) == shard.xxh3_128
        )

    def put(self, shard: Shard, content: bytes) -> None:
        """Write a temporary file and rename it."""
        with self._one_line_writing():
            write_durably(self.path / shard.name, content)

    def publish(self, shards: Sequence[Shard], index: str) -> None:
        """Write the index as `put` writes a shard."""
        own = {shard.name for shard in shards}
        with self._one_line_writing():
            for path in self.path.iterdir():
                if re.fullmatch(SHARD_NAME, path.name) and path.name not in own:
                    path.unlink()
            write_durably(self.path / INDEX_NAME, index.encode())

    def _clean(self, lock: int) -> None:
        """Remove temporary files that nobody writes: whoever packs here holds `lock`, the folder, shared."""
        with contextlib.suppress(OSError):  # another command packs here, or the file system knows no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in self.path.iterdir():
                if _LEFTOVER.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def _one_line_reading(self, shard: Shard, remedy: str) -> Iterator[None]:
        path, remedy = self.path / shard.name, remedy or KEPT
        try:
            yield
        except FileNotFoundError:
            raise DataError(f"{path}: shard is missing; {remedy}") from None
        except FileDamagedError as error:
            raise DataError(f"{path}: {error}; {remedy}") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None

    @contextlib.contextmanager
    def _one_line_writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self}: cannot be written ({error.strerror}); choose a writable folder"
            ) from None


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a named pipe must not wait for its writer


def _splits(folder: Path) -> list[str]:
    """Return the names of the splits in `folder`."""
    try:
        return sorted(path.parent.name for path in folder.glob(f"*/{INDEX_NAME}"))
    except OSError:
        return []
