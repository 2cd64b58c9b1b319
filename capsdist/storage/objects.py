"""Whole objects below an s3:// URL, read or written within a deadline, tried again where that may help.

Built on s3fs. Its own retries are switched off: they know no total deadline (an endless 503 takes 40 s) and
do not cover damaged bytes. Whole objects only: ranges are not covered by S3's checksums.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fsspec.asyn import sync
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from capsdist.errors import CapsdistError, DataError, DocumentError
from capsdist.storage.documents import MAX_BYTES
from capsdist.storage.place import Place
from capsdist.storage.reasons import Damaged, explain, is_damaged, is_missing, is_taken
from capsdist.storage.settings import deadline_from_environment

if TYPE_CHECKING:
    from s3fs import S3FileSystem

__all__ = ["ObjectFolder"]

T = TypeVar("T")
_CONNECT_S = 5.0
_NUM_DAMAGED = 3  # attempts that may end in other bytes: what is damaged where it is stored stays so
_STALL_S = 15.0  # without a byte; at most a third of the deadline, so that there are three attempts


class ObjectFolder:
    """The objects below `url`, s3://bucket/prefix, by their names there.

    error: what is raised, one line each, naming the object, the reason and the remedy. deadline_s: for one
    call, all attempts together; default CAPSDIST_S3_DEADLINE_S, else 120. Credentials come from the
    environment or the instance profile. May be shared by threads, pickled and used after a fork: the
    connection is made in the process that uses it.
    """

    def __init__(
        self, url: str, *, error: type[CapsdistError] = DataError, deadline_s: float | None = None
    ) -> None:
        self.place = Place.parse(url, error=error)
        self._deadline_s = deadline_s
        self._error = error

    def __str__(self) -> str:
        return str(self.place)

    def path(self, name: str) -> str:
        """Return the URL of the object `name`, for messages."""
        return f"{self.place}/{name}"

    def read(self, name: str, *, sha256: str | None = None, max_bytes: int = MAX_BYTES) -> bytes:
        """Return the content of the object `name`; with `sha256`, only if that is its checksum.

        Raises:
            FileNotFoundError: there is no such object. error: it could not be read within the deadline.
            DocumentError: it is larger than `max_bytes`, of which none is read; names it.
        """

        def check(content: bytes | None) -> None:
            if content is not None and sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
                raise Damaged

        content = self._call(
            functools.partial(self._get, name, max_bytes),
            "read",
            name,
            check=check,
            note=f" (sha256 {sha256})" if sha256 else "",
        )
        if content is None:
            raise DocumentError(f"{self.path(name)} is larger than {max_bytes:,} bytes")
        return content

    async def _get(self, name: str, max_bytes: int, store: S3FileSystem) -> bytes | None:
        """Return the content of the object, None if it is larger.

        One request, which tells the size first: more would be reads of ranges, without a checksum.
        """
        answer = await store._call_s3("get_object", **self._key(name))
        try:
            return await answer["Body"].read() if answer["ContentLength"] <= max_bytes else None
        finally:
            answer["Body"].close()

    def write(
        self, name: str, content: bytes, *, new: bool = False, metadata: dict[str, str] | None = None
    ) -> bool:
        """Write the object `name` at once; with `new`, only where there is none.

        Return whether it was written: False where `new` found one with other content.

        Raises:
            error: it could not be written within the deadline.
        """

        async def put(store: S3FileSystem) -> bool:
            try:
                await store._call_s3("put_object", **self._key(name), Body=content, **options)
            except Exception as error:
                if not (new and is_taken(error)):
                    raise
                # The attempt before this one may have got through although its answer was lost.
                return await self._get(name, len(content), store) == content
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

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the sizes in bytes of all objects whose names begin with `prefix`, by name, at any depth.

        Raises:
            error: they could not be listed within the deadline.
        """
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

    def delete(self, name: str) -> None:
        """Delete the object `name`, if it is there.

        Raises:
            error: it could not be deleted within the deadline.
        """

        async def remove(store: S3FileSystem) -> None:
            await store._call_s3("delete_object", **self._key(name))

        self._call(remove, "deleted", name)

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self.place.bucket, "Key": self.place.key(name)}

    def _call(
        self,
        operation: Callable[[S3FileSystem], Awaitable[T]],
        done: str,
        name: str,
        *,
        check: Callable[[T], None] = lambda result: None,
        note: str = "",
    ) -> T:
        """Return what `operation` returns and `check` accepts, tried within the deadline.

        `check` runs in this thread: the one of the connections serves other downloads meanwhile.
        """
        deadline_s = self._deadline_s or deadline_from_environment()
        start, num_damaged, on_time = time.monotonic(), 0, stop_before_delay(deadline_s)

        def stop(state: RetryCallState) -> bool:
            nonlocal num_damaged
            assert state.outcome is not None
            error = state.outcome.exception()
            num_damaged += error is not None and is_damaged(error)
            return num_damaged == _NUM_DAMAGED or on_time(state)

        def attempt() -> T:
            place, process = self.place, os.getpid()
            store = _store(process, place.endpoint, place.region, deadline_s, _aws_environment())
            left_s = deadline_s - (time.monotonic() - start)
            result = cast(T, sync(store.loop, operation, store, timeout=max(left_s, 0.1)))
            check(result)
            return result

        retrying = Retrying(
            retry=retry_if_exception(lambda error: explain(error).transient),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            stop=stop,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except Exception as error:
            if is_missing(error):
                raise FileNotFoundError(self.path(name)) from None
            reason, count = explain(error), retrying.statistics["attempt_number"]
            tries = f", {count} attempts in {time.monotonic() - start:.0f} s" if reason.transient else ""
            raise self._error(
                f"{self.path(name)}{note}: cannot be {done} ({reason.text}{tries}); {reason.remedy}"
            ) from None


def _aws_environment() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))


@functools.lru_cache(maxsize=4)
def _store(
    process: int,
    endpoint: str | None,
    region: str | None,
    deadline_s: float,
    environment: tuple[tuple[str, str], ...],
) -> S3FileSystem:
    """Return the connections of this process: a forked child must not use its parent's."""
    from s3fs import S3FileSystem  # late: most runs read local files

    store = S3FileSystem(
        endpoint_url=endpoint,
        client_kwargs={"region_name": region} if region else {},
        config_kwargs={
            "connect_timeout": min(_CONNECT_S, deadline_s / 3),
            "read_timeout": min(_STALL_S, deadline_s / 3),
            "retries": {"total_max_attempts": 1},
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    store.retries = 1
    return store
