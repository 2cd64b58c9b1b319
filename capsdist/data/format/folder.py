"""`SplitFolder`: the files of one split, in any `Folder`: index, shards, and what a packing command does.

A shard's sha256 is compared when it enters the cache of a node, its xxh3 whenever a process reads it whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from capsdist.data.format.index import INDEX_NAME, KEPT, MAX_INDEX_BYTES, SHARD_NAME, Shard, missing_split
from capsdist.data.format.packed import TABLE_NAME, TAR_NAME, StoredFile
from capsdist.data.format.prefetch import Prefetcher
from capsdist.data.format.reading import FileDamagedError, Identity, identify, read_checked
from capsdist.errors import CapsdistError, DataError, DocumentError, MissingDataError
from capsdist.storage import Folder, open_folder

__all__ = ["SplitFolder"]

# What a packing command that was killed leaves: temporary files of `capsdist.storage` and of version 0.1.
_TEMPORARY = re.compile(
    r"\.(shard-[0-9]{5,9}\.[0-9a-f]{8}\.tar|table-[0-9]{5,9}\.[0-9a-f]{8}\.npy|index\.[0-9a-f]{8}\.json|probe\.[0-9a-f]{8}"
    r"|(shard-[0-9]{5,9}\.tar|index\.json)\.[0-9a-z_]{8})"
)


_PART = "part-"


class SplitFolder:
    """The files of the split at `place`, a local path, a file:// or an s3:// URL; `str` returns that.

    is_local: shards are read in place; those of other splits are fetched before they are used, and not all
        read before a run.

    Raises:
        DataError: raised by all methods; a `remedy` is the end of the message.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self._folder = open_folder(place)
        self._prefetcher = Prefetcher(self._fetch)
        self.is_local = self._folder.local is not None

    def __str__(self) -> str:
        return str(self._folder)

    def path(self, shard: StoredFile) -> str:
        """Return the path or URL of `shard`, for messages."""
        return self._folder.path(shard.name)

    def check_access(self, remedy: str) -> None:
        """Check in under 10 seconds that the folder exists and can be read."""
        try:
            self._folder.check_readable(remedy=remedy)
        except MissingDataError:
            if siblings := _splits(self._folder.parent):
                place = str(self._folder.parent)
                raise DataError(missing_split(str(self), place, siblings, remedy)) from None
            raise

    def read_index(self, remedy: str) -> bytes:
        """Return the content of the index, never that of a cached copy: unlike shards it may change."""
        with self._one_line_errors(INDEX_NAME, remedy):
            content = self._folder.read(INDEX_NAME, max_bytes=MAX_INDEX_BYTES)
        if content is None:
            self.check_access(remedy)
            if splits := _splits(self._folder):
                names = ", ".join(splits)
                raise DataError(f"{self}: is a data set with the splits {names}; name one of them")
            raise DataError(f"{self}: has no {INDEX_NAME}, so it was never packed to the end; {remedy}")
        return content

    def check_sizes(self, shards: Sequence[StoredFile], remedy: str) -> None:
        """Check that the cache can be used, and, by listing the folder, that every shard has its size."""
        self._folder.is_near(shards[0].sha256)
        every = all(shard.name.startswith("shard-") for shard in shards)
        sizes = self._folder.sizes("shard-" if every else "")
        for shard in shards:
            with self._one_line_errors(shard.name, remedy):
                if (size := sizes.get(shard.name)) is None:
                    raise MissingDataError
                if size != shard.size_bytes:
                    raise FileDamagedError(f"has {size} bytes instead of {shard.size_bytes}")

    def read(
        self, shard: Shard, remedy: str, span: tuple[int, int, str] | None = None
    ) -> tuple[np.ndarray, Identity]:
        """Return bytes of `shard`, uint8, once their xxh3 is right, and the identity of its file.

        span: begin, end and checksum of a block; None: the whole shard. A damaged copy in the cache is
        replaced once.
        """
        copies = None
        for _ in range(2):
            with self.open(shard, remedy) as file:
                identity = self.identify(file)
                try:
                    return read_checked(file.fileno(), shard, span), identity
                except (FileDamagedError, OSError) as error:
                    damage = error
            if (copies := self._folder.discard_copy(shard.sha256)) is None:
                with self._one_line_errors(shard.name, remedy):
                    raise damage
        raise DataError(
            f"{self.path(shard)}: its copy in {copies} was damaged twice; set CAPSDIST_CACHE to a folder on "
            "another disk"
        )

    def open(self, shard: StoredFile, remedy: str) -> BinaryIO:
        """Return the file of `shard`, fetched if need be, open for reading; its content is not compared."""
        with self._one_line_errors(shard.name, remedy):
            self._prefetcher.wait_for(shard)
            return self._fetch(shard)

    def identify(self, file: BinaryIO) -> Identity:
        """Return the identity of a file from `open`, equal to that of `read` until its content changes.

        The time of change reveals a file that was overwritten and whose times were set back. In the cache
        it changes whenever a process opens a file, and is left out.
        """
        return identify(file.fileno(), change_time=self.is_local)

    def stored(self, shard: StoredFile, remedy: str) -> np.ndarray:
        """Return the stored bytes of `shard`, uint8, past any cache, once its sha256 is right."""
        with self._one_line_errors(shard.name, remedy):
            content = self._folder.read(shard.name, max_bytes=shard.size_bytes, sha256=shard.sha256)
            if content is None:
                raise MissingDataError
        return np.frombuffer(content, np.uint8)

    def discard_copy(self, shard: StoredFile) -> bool:
        """Remove the copy of `shard` in the cache of this node; return whether shards are cached at all."""
        return self._folder.discard_copy(shard.sha256) is not None

    def tar_names(self) -> dict[str, int]:
        """Return name and size in bytes of every tar file in the folder, in the order of names."""
        sizes = self._folder.sizes()
        return {name: size for name, size in sorted(sizes.items()) if re.fullmatch(TAR_NAME, name)}

    def open_tar(self, name: str) -> BinaryIO:
        """Return a tar file of a local folder that no index names yet, open for reading."""
        with self._one_line_errors(name, "get the file again"):
            file = self._folder.open(name, size_bytes=0, sha256="")
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                file.close()
                raise FileDamagedError("is not a regular file")
            return file

    def read_tar(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a tar file that no index names yet."""
        with self._one_line_errors(name, "get the file again"):
            if (content := self._folder.read(name, max_bytes=max_bytes)) is None:
                raise MissingDataError
        return content

    def prefetch(self, shards: Sequence[StoredFile]) -> None:
        """Begin to fetch those of `shards` that are not on this node; return at once.

        What fails is raised, or tried again, when the shard is read.
        """
        self._prefetcher.start([shard for shard in shards if not self._folder.is_near(shard.sha256)])

    @contextlib.contextmanager
    def packing(self) -> Iterator[None]:
        """Hold the folder, without an index, while shards are written in the context."""
        with self._folder.writing(_TEMPORARY):
            self._folder.delete(INDEX_NAME)
            yield

    def holds(self, shard: StoredFile) -> bool:
        """Return whether `shard` is stored already with its content."""
        return self._folder.matches(shard.name, shard.size_bytes, shard.sha256)

    def put(self, shard: StoredFile, content: bytes) -> None:
        """Store `shard`; a reader sees the old one or the whole new one."""
        self._folder.write(shard.name, content, metadata={"sha256": shard.sha256})

    def publish(self, files: Sequence[StoredFile], index: str, *, own_shards: bool = True) -> None:
        """Delete shards and tables that are none of `files`, and store the index, which completes the split.

        An equal index that another process has stored meanwhile is as good. own_shards: False for tar files
        that another program has written; they are never deleted.
        """
        kept = {file.name for file in files}
        for prefix, pattern in (("shard-", SHARD_NAME), ("table-", TABLE_NAME)):
            for stale in self._folder.sizes(prefix).keys() - kept:
                if re.fullmatch(pattern, stale) and (own_shards or pattern != SHARD_NAME):
                    self._folder.delete(stale)
        if not self._folder.write(INDEX_NAME, index.encode(), new=True):
            raise DataError(
                f"{self}: another process has packed another data set there meanwhile; choose another place"
            )

    def read_part(self, number: int) -> bytes | None:
        """Return the entry of a shard that packing has finished, None without one.

        Raises:
            DocumentError: it cannot be read.
        """
        return self._folder.read(_part(number))

    def put_part(self, number: int, content: bytes) -> None:
        """Store the entry of a shard that packing has finished."""
        self._folder.write(_part(number), content)

    def _fetch(self, shard: StoredFile) -> BinaryIO:
        return self._folder.open(shard.name, size_bytes=shard.size_bytes, sha256=shard.sha256)

    @contextlib.contextmanager
    def _one_line_errors(self, name: str, remedy: str) -> Iterator[None]:
        path, remedy = self._folder.path(name), remedy or KEPT
        try:
            yield
        except MissingDataError:
            what = "shard is missing" if name.startswith("shard-") else "is missing"
            raise DataError(f"{path}: {what}; {remedy}") from None
        except DocumentError as error:  # begins with the path
            reason = str(error).removeprefix(path).lstrip(": ")
            text = f"{path}: {reason}" if self.is_local else str(error)
            raise DataError(f"{text}; {remedy}") from None
        except FileDamagedError as error:
            raise DataError(f"{path}: {error}; {remedy}") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None


def _splits(folder: Folder | None) -> list[str]:
    """Return the names of the splits in `folder`."""
    with contextlib.suppress(CapsdistError, OSError):
        return [name for name, packed in folder.folders("", INDEX_NAME).items() if packed] if folder else []
    return []


def _part(number: int) -> str:
    return f"{_PART}{number:05d}.json"
