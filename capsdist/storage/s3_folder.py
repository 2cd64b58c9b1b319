"""`S3Folder`: a `Folder` in object storage. Objects are read and written whole, each within one deadline.

Only large files of a folder that is stored or fetched whole go in parts: S3's checksums do not cover ranges.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from capsdist.errors import CapsdistError, DataError, DocumentError, MissingDataError
from capsdist.storage import s3_parts
from capsdist.storage.cache import Cache
from capsdist.storage.check import check_readable, check_writable
from capsdist.storage.documents import MAX_BYTES
from capsdist.storage.durable import TEMPORARY
from capsdist.storage.place import Place
from capsdist.storage.reasons import Damaged, is_taken
from capsdist.storage.s3_request import Operation, RequestError, send
from capsdist.storage.settings import deadline_from_environment
from capsdist.storage.temporary import temporary_folder

if TYPE_CHECKING:
    from s3fs import S3FileSystem

__all__ = ["S3Folder"]

T = TypeVar("T")


class S3Folder:
    """The objects below `url`, s3://bucket/prefix. Methods: see `Folder`.

    Args:
        url: URL of the folder; credentials come from the environment or the instance profile.
        error: Type of the errors, each one line that names the object, the reason and the remedy.
        deadline_s: Limit of one call in seconds, all attempts together; default CAPSDIST_S3_DEADLINE_S,
            else 120.

    May be shared by threads, pickled and used after a fork: connections are made in the process that uses
    them.
    """

    local = None

    def __init__(
        self, url: str, *, error: type[CapsdistError] = DataError, deadline_s: float | None = None
    ) -> None:
        self.place = Place.parse(url, error=error)
        self._deadline_s = deadline_s
        self._error = error

    def __str__(self) -> str:
        return str(self.place)

    @property
    def name(self) -> str:
        """Last part of the prefix."""
        return self.place.prefix.rpartition("/")[2]

    @property
    def parent(self) -> S3Folder | None:
        """The folder above, None directly below the bucket."""
        prefix = self.place.prefix.rpartition("/")[0]
        above = copy.copy(self)
        above.place = replace(self.place, prefix=prefix)
        return above if prefix else None

    def path(self, name: str) -> str:
        """Return the URL."""
        return f"{self.place}/{name}"

    def read(self, name: str, *, max_bytes: int = MAX_BYTES, sha256: str | None = None) -> bytes | None:
        """Read the object, in one request."""

        def check_sum(content: bytes) -> None:
            if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
                raise Damaged

        try:
            get = functools.partial(self._get, name, max_bytes)
            return self._call(get, "read", name, check_sum, f" (sha256 {sha256})" if sha256 else "")
        except FileNotFoundError:
            return None

    def write(
        self, name: str, content: bytes, *, new: bool = False, metadata: dict[str, str] | None = None
    ) -> bool:
        """Write the object, in one request."""

        async def put(store: S3FileSystem) -> bool:
            try:
                await store._call_s3("put_object", **self._key(name), Body=content, **options)
            except Exception as error:
                if not (new and is_taken(error)):
                    raise
                # The attempt before this one may have been successful although its answer was lost.
                with contextlib.suppress(DocumentError):  # a larger one
                    return await self._get(name, len(content), store) == content
                return False
            return True

        options = {"Metadata": metadata or {}, **({"IfNoneMatch": "*"} if new else {})}
        return self._call(put, "written", name)

    def metadata(self, name: str) -> tuple[int, dict[str, str]]:
        """Return the size in bytes and the metadata of the object `name`.

        Raises:
            FileNotFoundError: there is no such object. error: as `read`.
        """

        async def head(store: S3FileSystem) -> tuple[int, dict[str, str]]:
            answer = await store._call_s3("head_object", **self._key(name))
            return answer["ContentLength"], answer["Metadata"]

        return self._call(head, "read", name)

    def delete(self, name: str) -> None:
        """Delete the object."""

        async def remove(store: S3FileSystem) -> None:
            await store._call_s3("delete_object", **self._key(name))

        self._call(remove, "deleted", name)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """List the objects: a request for each thousand of them."""
        whole = self.place.key(prefix)
        base = len(self.place.key(""))

        async def listing(store: S3FileSystem) -> dict[str, int]:
            found: dict[str, int] = {}
            request: dict[str, Any] = {"Bucket": self.place.bucket, "Prefix": whole}
            while True:
                page = await store._call_s3("list_objects_v2", **request)
                found.update({entry["Key"][base:]: entry["Size"] for entry in page.get("Contents", [])})
                if not page.get("IsTruncated"):
                    return found
                request["ContinuationToken"] = page["NextContinuationToken"]

        return self._call(listing, "listed", prefix)

    def matches(self, name: str, size_bytes: int, sha256: str) -> bool:
        """Compare the size and the sha256 among the metadata (S3's own ETag is not always a checksum)."""
        try:
            size, metadata = self.metadata(name)
        except FileNotFoundError:
            return False
        return size == size_bytes and metadata.get("sha256") == sha256

    def open(self, name: str, *, size_bytes: int, sha256: str) -> BinaryIO:
        """Open the copy in the cache, which keeps it while it is open."""

        def download() -> bytes:
            content = self.read(name, max_bytes=size_bytes, sha256=sha256)
            if content is None:
                raise MissingDataError(f"{self.path(name)}: there is no such object")
            if len(content) != size_bytes:
                raise DocumentError(f"{self.path(name)} has {len(content)} bytes instead of {size_bytes}")
            return content

        return self._cache.open(sha256, size_bytes, download)

    def is_near(self, sha256: str) -> bool:
        """Look into the cache."""
        return self._cache.holds(sha256)

    def discard_copy(self, sha256: str) -> Path | None:
        """Remove the copy from the cache."""
        self._cache.discard(sha256)
        return self._cache.folder

    def folders(self, prefix: str, marker: str = "") -> dict[str, bool]:
        """List the objects; one whose name ends with a slash is a marker that other programs leave."""
        found: dict[str, bool] = {}
        for name in sorted(self.sizes(prefix)):
            folder, slash, file = name.partition("/")
            if slash:
                found[folder] = found.get(folder, False) or file == marker
        return found

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """Make a temporary folder."""
        return temporary_folder()

    def store(self, staged: Path, name: str, *, marker: str) -> None:
        """Upload the files, the marker last; an older marker is deleted first."""
        self.delete(f"{name}/{marker}")
        for path in sorted(staged.iterdir(), key=lambda path: path.name == marker):
            key = f"{name}/{path.name}"
            if path.stat().st_size > s3_parts.PART_BYTES:
                s3_parts.upload(self._sender("written", key), self._key(key), path)
            else:
                self.write(key, path.read_bytes())

    @contextlib.contextmanager
    def fetched(self, name: str, max_bytes: Mapping[str, int], *, at: Path | None = None) -> Iterator[Path]:
        """Download the objects into a temporary folder, and no others that lie there."""
        with temporary_folder(at=at) as folder:
            there = self.sizes(f"{name}/")
            for file, limit in max_bytes.items():
                if (size := there.get(key := f"{name}/{file}")) is not None:
                    self._download(key, folder / file, size, limit)
            yield folder

    def remove(self, name: str, *, marker: str) -> None:
        """Delete the objects."""
        self.delete(f"{name}/{marker}")
        for each in self.sizes(f"{name}/"):
            self.delete(each)

    def remove_stale(self) -> None:
        """Do nothing: temporary folders are removed where they are; see `capsdist.storage.temporary`."""

    def check_readable(self, *, thing: str = "data set", remedy: str = "") -> None:
        """List the objects and read one."""
        check_readable(self.place, thing, remedy, error=self._error)

    def check_writable(self) -> None:
        """List, write, read and delete an object."""
        check_writable(self.place, error=self._error)

    @contextlib.contextmanager
    def writing(self, temporary: re.Pattern[str] = TEMPORARY) -> Iterator[None]:
        """Check that objects can be written; there are no locks and no temporary objects."""
        self.check_writable()
        yield

    @functools.cached_property
    def _cache(self) -> Cache:
        return Cache()

    async def _get(self, name: str, max_bytes: int, store: S3FileSystem) -> bytes:
        """Return the content of the object; of one that is larger than `max_bytes` nothing is read."""
        answer = await store._call_s3("get_object", **self._key(name))
        try:
            if answer["ContentLength"] > max_bytes:
                raise self._larger(name, max_bytes)
            return await answer["Body"].read()
        finally:
            answer["Body"].close()

    def _download(self, name: str, target: Path, size: int, max_bytes: int) -> None:
        if size > max_bytes:
            raise self._larger(name, max_bytes)
        try:
            if size > s3_parts.PART_BYTES:
                s3_parts.download(self._sender("read", name), self._key(name), size, target)
            else:
                target.write_bytes(self._call(functools.partial(self._get, name, max_bytes), "read", name))
        except FileNotFoundError:
            raise self._error(
                f"{self.path(name)}: was deleted while it was read; let one process at a time change this "
                "folder"
            ) from None
        except OSError as error:
            reason = error.strerror or error
            raise self._error(
                f"{target}: cannot be written ({reason}); make room there, or set TMPDIR to another folder"
            ) from None

    def _larger(self, name: str, max_bytes: int) -> DocumentError:
        return DocumentError(f"{self.path(name)} is larger than {max_bytes:,} bytes")

    def _sender(self, done: str, name: str) -> s3_parts.Call:
        return functools.partial(self._call, done=done, name=name)

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self.place.bucket, "Key": self.place.key(name)}

    def _call(
        self,
        operation: Operation[T],
        done: str,
        name: str,
        check: Callable[[T], None] = lambda result: None,
        note: str = "",
    ) -> T:
        try:
            return send(self.place, operation, self._deadline_s or deadline_from_environment(), check)
        except FileNotFoundError:
            raise FileNotFoundError(self.path(name)) from None
        except RequestError as error:
            raise self._error(
                f"{self.path(name)}{note}: cannot be {done} ({error.reason}); {error.remedy}"
            ) from None
