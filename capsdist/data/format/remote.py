"""A split in object storage, read through the cache of the node: whole shards, each downloaded once per node.

A shard's sha256 is compared when it enters the cache, its xxh3 whenever a process reads it whole.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from capsdist.data.format.index import INDEX_NAME, KEPT, MAX_INDEX_BYTES, SHARD_NAME, Shard, missing_split
from capsdist.data.format.reading import FileDamagedError, Identity, identify, read_checked
from capsdist.errors import DataError, DocumentError, MissingDataError
from capsdist.storage import Cache, ObjectFolder, check_readable, check_storage

__all__ = ["RemoteFolder"]

_NUM_THREADS = 4  # downloads at a time of one process


class RemoteFolder:
    """A split below `url`, s3://bucket/prefix. Methods: see `SplitFolder`."""

    is_near = False

    def __init__(self, url: str) -> None:
        self._url = url
        self._objects = ObjectFolder(url)
        self._cache = Cache()
        self._prefetcher = _Prefetcher(self._fill)
        self._failures: dict[str, DataError] = {}  # of the threads, by sha256

    def __str__(self) -> str:
        return str(self._objects)

    def check_access(self, remedy: str) -> None:
        """List and read, in under 10 seconds."""
        try:
            check_readable(self._url, remedy=remedy)
        except MissingDataError as error:
            if (above := _above(self._url)) and (siblings := self._siblings(above)):
                place = str(ObjectFolder(above))
                raise DataError(missing_split(str(self), place, siblings, remedy)) from None
            raise error from None

    def read_index(self, remedy: str) -> bytes:
        """Read the object, always from the storage: it may change, unlike shards."""
        try:
            return self._objects.read(INDEX_NAME, max_bytes=MAX_INDEX_BYTES)
        except DocumentError as error:
            raise DataError(f"{error}; {remedy}") from None
        except FileNotFoundError:
            raise DataError(
                f"{self}: has no {INDEX_NAME}, so it was never packed to the end; {remedy}"
            ) from None

    def check_sizes(self, shards: Sequence[Shard], remedy: str) -> None:
        """List the shards: one request for a thousand of them."""
        sizes = self._objects.sizes("shard-")
        for shard in shards:
            size, path = sizes.get(shard.name), self._objects.path(shard.name)
            if size is None:
                raise DataError(f"{path}: shard is missing; {remedy or KEPT}")
            if size != shard.size_bytes:
                raise DataError(f"{path}: has {size} bytes instead of {shard.size_bytes}; {remedy or KEPT}")

    def read(self, shard: Shard, remedy: str) -> tuple[np.ndarray, Identity]:
        """Read the cached file, fetched if need be, and compare its xxh3; replace it once if damaged."""
        for _ in range(2):
            with self.open(shard, remedy) as file:
                identity = self.identify(file)
                with contextlib.suppress(FileDamagedError, OSError):
                    return read_checked(file.fileno(), shard), identity
            self._cache.discard(shard.sha256)
        raise DataError(
            f"{self._objects.path(shard.name)}: its copy in {self._cache.folder} was damaged twice; set "
            "CAPSDIST_CACHE to a folder on another disk"
        )

    def open(self, shard: Shard, remedy: str) -> BinaryIO:
        """Open the cached file, fetched if need be; the cache keeps it while it is open."""
        self._failures.pop(shard.sha256, None)

        def fetch() -> bytes:
            # A thread of ours may have failed with it while we waited for its lock: once is enough.
            if failure := self._failures.pop(shard.sha256, None):
                raise failure
            return self._download(shard, remedy)

        return self._cache.open(shard.sha256, shard.size_bytes, fetch)

    def identify(self, file: BinaryIO) -> Identity:
        """Ask the file system; every reader of the cache changes the time of change when it opens a file."""
        return identify(file.fileno(), change_time=False)

    def stored(self, shard: Shard, remedy: str) -> np.ndarray:
        """Read the object and compare its sha256."""
        return np.frombuffer(self._download(shard, remedy), np.uint8)

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Fill the cache in threads; what fails here is raised, or tried again, when the shard is read."""
        self._prefetcher.want([shard for shard in shards if not self._cache.holds(shard.sha256)])

    @contextlib.contextmanager
    def packing(self) -> Iterator[None]:
        """Prove that the place can be written, in under 10 seconds, and delete the index."""
        check_storage(self._url, error=DataError)
        self._objects.delete(INDEX_NAME)
        yield

    def holds(self, shard: Shard) -> bool:
        """Compare size and the sha256 that `put` has noted; nothing is downloaded."""
        try:
            size, metadata = self._objects.metadata(shard.name)
        except FileNotFoundError:
            return False
        return size == shard.size_bytes and metadata.get("sha256") == shard.sha256

    def put(self, shard: Shard, content: bytes) -> None:
        """Write the object with its sha256 as metadata (S3's own ETag is not always a checksum)."""
        self._objects.write(shard.name, content, metadata={"sha256": shard.sha256})

    def publish(self, shards: Sequence[Shard], index: str) -> None:
        """Write the index if there is none; the same one, written by another process, is as good."""
        for stale in self._objects.sizes("shard-").keys() - {shard.name for shard in shards}:
            if re.fullmatch(SHARD_NAME, stale):
                self._objects.delete(stale)
        if not self._objects.write(INDEX_NAME, index.encode(), new=True):
            raise DataError(
                f"{self}: another process has packed another data set there meanwhile; choose another place"
            )

    def _download(self, shard: Shard, remedy: str) -> bytes:
        """Read the object and compare its sha256 and size."""
        path = self._objects.path(shard.name)
        try:
            content = self._objects.read(shard.name, sha256=shard.sha256, max_bytes=shard.size_bytes)
        except FileNotFoundError:
            raise DataError(f"{path}: shard is missing; {remedy or KEPT}") from None
        except DocumentError as error:
            raise DataError(f"{error}; {remedy or KEPT}") from None
        if len(content) != shard.size_bytes:
            raise DataError(
                f"{path}: has {len(content)} bytes instead of {shard.size_bytes}; {remedy or KEPT}"
            )
        return content

    def _siblings(self, above: str) -> list[str]:
        """Return the names of the splits below `above`."""
        with contextlib.suppress(DataError):
            parts = (name.split("/") for name in ObjectFolder(above).sizes())
            return sorted(part[0] for part in parts if len(part) == 2 and part[1] == INDEX_NAME)
        return []

    def _fill(self, shard: Shard) -> None:
        def fetch() -> bytes:
            try:
                return self._download(shard, "")
            except DataError as error:
                self._failures[shard.sha256] = error
                raise

        self._cache.open(shard.sha256, shard.size_bytes, fetch).close()


def _above(url: str) -> str | None:
    """Return the URL of the data set that a split at `url` is part of, None at the root of a bucket."""
    address, mark, query = url.partition("?")
    above = address.rstrip("/").rpartition("/")[0]
    return above + mark + query if above.count("/") > 2 else None


class _Prefetcher:
    """Calls `fetch` with shards in up to `_NUM_THREADS` threads, which end when nothing is left to do."""

    def __init__(self, fetch: Callable[[Shard], None]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._queue: deque[Shard] = deque()
        self._pending: set[str] = set()  # waiting or under way, by sha256
        self._num_threads = 0

    def want(self, shards: Sequence[Shard]) -> None:
        """Let threads fetch `shards`, in this order, unless they do already."""
        with self._lock:
            new = [shard for shard in shards if shard.sha256 not in self._pending]
            self._queue.extend(new)
            self._pending.update(shard.sha256 for shard in new)
            for _ in range(min(len(new), _NUM_THREADS - self._num_threads)):
                self._num_threads += 1
                threading.Thread(target=self._work, name="capsdist-fetch", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._num_threads -= 1
                    return
                shard = self._queue.popleft()
            with contextlib.suppress(DataError):
                self._fetch(shard)
            with self._lock:
                self._pending.discard(shard.sha256)
