"""Where the files of a split lie: a local folder, or a prefix in object storage, behind one set of methods.

Ours. `open_folder` chooses; `remote.py` has the other kind. Nothing above knows which one it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import xxhash

from capsdist.data.index import INDEX_NAME, KEPT, Shard
from capsdist.errors import DataError
from capsdist.storage import is_remote

__all__ = ["LocalFolder", "SplitFolder", "open_folder"]


class SplitFolder(Protocol):
    """The files of one split; `str` of it is what errors call it. All methods raise DataError.

    is_near: a local disk; a far split is fetched ahead of use, and not read wholly before a run.
    mapped_limit_bytes: how much of the split one reader may have mapped at a time.
    """

    is_near: bool
    mapped_limit_bytes: float

    def check_access(self, remedy: str) -> None:
        """Check quickly that something is there and can be read; `remedy` ends the error if not."""
        ...

    def read_index(self, remedy: str) -> str:
        """Return the text of the index; `remedy` ends the error where there is none."""
        ...

    def check_sizes(self, shards: Sequence[Shard], remedy: str) -> None:
        """Check that every shard is there with its size, without reading any."""
        ...

    def map(self, shard: Shard, remedy: str) -> mmap.mmap:
        """Map `shard` into memory, its size and checksum compared with the index."""
        ...

    def stored(self, shard: Shard, remedy: str) -> bytes | mmap.mmap:
        """Return what is stored of `shard`, whatever a cache holds; its sha256 is the index's."""
        ...

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Begin to bring `shards` near, where they are far; return at once."""
        ...

    def begin(self) -> None:
        """Make the place and withdraw an index that is there, before shards are written."""
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
        from capsdist.data.remote import RemoteFolder  # late: local runs need no client

        return RemoteFolder(text)
    return LocalFolder(Path(text.removeprefix("file://")))


class LocalFolder:
    """A split on a local disk: shards are mapped where they lie. Methods: see `SplitFolder`."""

    is_near = True
    mapped_limit_bytes = math.inf

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def check_access(self, remedy: str) -> None:
        """Do nothing: reading the index says the same."""

    def read_index(self, remedy: str) -> str:
        """Read the file."""
        if not self.path.is_dir():
            raise DataError(f"{self}: there is no such data set; {remedy}")
        try:
            return (self.path / INDEX_NAME).read_text()
        except FileNotFoundError:
            raise DataError(
                f"{self}: has no {INDEX_NAME}, so it was never packed to the end; {remedy}"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            reason = type(error).__name__
            raise DataError(f"{self}/{INDEX_NAME}: cannot be read ({reason}); {remedy}") from None

    def check_sizes(self, shards: Sequence[Shard], remedy: str) -> None:
        """Ask the file system."""
        for shard in shards:
            self._map(shard, remedy)

    def map(self, shard: Shard, remedy: str) -> mmap.mmap:
        """Map the file and compare its xxh3."""
        data = self._map(shard, remedy)
        if xxhash.xxh3_128_hexdigest(data) != shard.xxh3_128:
            path = self.path / shard.name
            raise DataError(f"{path}: wrong checksum, the file is damaged; {remedy or KEPT}")
        return data

    def stored(self, shard: Shard, remedy: str) -> mmap.mmap:
        """Map the file and compare its sha256."""
        data = self._map(shard, remedy)
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            path = self.path / shard.name
            raise DataError(f"{path}: wrong sha256, the file is damaged; {remedy or KEPT}")
        return data

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Do nothing: the shards are near."""

    def begin(self) -> None:
        """Make the folder and remove the index."""
        with self._one_line_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / INDEX_NAME).unlink(missing_ok=True)

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
        with self._one_line_errors():
            _publish(self.path / shard.name, content)

    def publish(self, shards: Sequence[Shard], index: str) -> None:
        """Write the index as `put` writes a shard."""
        with self._one_line_errors():
            for stale in set(self.path.glob("shard-*.tar")) - {self.path / shard.name for shard in shards}:
                stale.unlink()
            _publish(self.path / INDEX_NAME, index.encode())

    def _map(self, shard: Shard, remedy: str) -> mmap.mmap:
        path, remedy = self.path / shard.name, remedy or KEPT
        try:
            size = path.stat().st_size
            if size != shard.size_bytes:
                raise DataError(f"{path}: has {size} bytes instead of {shard.size_bytes}; {remedy}")
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise DataError(f"{path}: shard is missing; {remedy}") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None

    @contextlib.contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self}: cannot be written ({error.strerror}); choose a writable folder"
            ) from None


def _publish(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and rename it, so that no reader ever sees half a file."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
