"""One request to object storage within one deadline, tried again where that may help.

s3fs sends the requests. Its own retries are switched off: they have no deadline over all attempts (a server
that always answers 503 takes 40 s) and do not cover damaged bytes.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from capsdist.errors import DocumentError
from capsdist.storage.place import Place
from capsdist.storage.reasons import explain, is_damaged, is_missing

if TYPE_CHECKING:
    from s3fs import S3FileSystem

__all__ = ["Operation", "RequestError", "send"]

T = TypeVar("T")
Operation: TypeAlias = "Callable[[S3FileSystem], Awaitable[T]]"
_CONNECT_S = 5.0
_NUM_DAMAGED = 3  # attempts that may end in other bytes: what is damaged where it is stored stays so
_STALL_S = 15.0  # without a byte; at most a third of the deadline, so that there are three attempts


class RequestError(Exception):
    """A request failed; `reason` and `remedy` are parts of a message."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy


def send(
    place: Place, operation: Operation[T], deadline_s: float, check: Callable[[T], None] = lambda result: None
) -> T:
    """Return what `operation` returns and `check` accepts, within `deadline_s`, all attempts together.

    `check` runs in this thread: the thread of the connections serves other downloads meanwhile.

    Raises:
        FileNotFoundError: there is no such object. RequestError: no attempt was successful.
        DocumentError: raised by `operation`, which is not tried again then.
    """
    start, num_damaged, on_time = time.monotonic(), 0, stop_before_delay(deadline_s)

    def stop(state: RetryCallState) -> bool:
        nonlocal num_damaged
        assert state.outcome is not None
        error = state.outcome.exception()
        num_damaged += error is not None and is_damaged(error)
        return num_damaged == _NUM_DAMAGED or on_time(state)

    def attempt() -> T:
        from fsspec.asyn import sync

        store = _store(os.getpid(), place.endpoint, place.region, deadline_s, _aws_environment())
        left_s = deadline_s - (time.monotonic() - start)
        result = cast(T, sync(store.loop, operation, store, timeout=max(left_s, 0.1)))
        check(result)
        return result

    retrying = Retrying(
        retry=retry_if_exception(
            lambda error: not isinstance(error, DocumentError) and explain(error).transient
        ),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        stop=stop,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except DocumentError:
        raise
    except Exception as error:
        if is_missing(error):
            raise FileNotFoundError from None
        reason, count = explain(error), retrying.statistics["attempt_number"]
        tries = f", {count} attempts in {time.monotonic() - start:.0f} s" if reason.transient else ""
        raise RequestError(f"{reason.text}{tries}", reason.remedy) from None


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
