"""Check whether a place in object storage is usable, within 10 seconds, before workers start.

Built on botocore directly and in a thread that is left behind when time is up: looking up a host's name and
waiting for a server that sends a byte now and then have no limit of their own.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import uuid
from collections.abc import Callable
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random

from capsdist.errors import CapsdistError, DataError, MissingDataError, RunError
from capsdist.storage.place import Place, has_credentials
from capsdist.storage.reasons import Damaged, Reason, explain

__all__ = ["check_readable", "check_storage"]

_LIMIT_S = 9.0
_CONNECT_S = 2.0
_STALL_S = 6.0  # the first write to a fresh server was seen to take 5
_CONTENT = b"capsdist"


class _InEndpoint(Exception):
    """The address of the server holds credentials."""


_IN_ENDPOINT = Reason(
    "endpoint_url in ~/.aws/config holds a user or a password", "take them out, ~/.aws/credentials holds keys"
)
_Probe = Callable[[Any, Callable[[str], None]], None]
"""Called with a client and with a function that it tells what it is about to do."""


def check_storage(url: str, *, error: type[CapsdistError] = RunError, deadline_s: float = _LIMIT_S) -> None:
    """Prove that `url`, s3://bucket/prefix, can be written to: list, write, read and delete an object there.

    No bucket is created: some servers create one that is written to, so it is listed first.

    Raises:
        error: one line with URL, server, what fails and the remedy, after `deadline_s` at the latest.
    """
    place = Place.parse(url, error=error)

    def probe(client: Any, step: Callable[[str], None]) -> None:
        target = {"Bucket": place.bucket, "Key": place.key(f".probe-{uuid.uuid4().hex}")}
        step("list")
        client.list_objects_v2(Bucket=place.bucket, Prefix=place.key(""), MaxKeys=1)
        step("write")
        client.put_object(**target, Body=_CONTENT)
        try:
            step("read")
            found = client.get_object(**target)["Body"].read()
        except BaseException:
            with contextlib.suppress(Exception):
                client.delete_object(**target)
            raise
        step("delete")
        client.delete_object(**target)
        if found != _CONTENT:
            raise Damaged

    _within(deadline_s, place, probe, error)


def check_readable(
    url: str, *, thing: str = "data set", remedy: str = "", deadline_s: float = _LIMIT_S
) -> None:
    """Prove that there are objects below `url`, s3://bucket/prefix, and that they can be listed and read.

    `thing` and `remedy` are what the error names and says where there is none.

    Raises:
        DataError: one line with URL, server, what fails and the remedy, after `deadline_s` at the latest.
    """
    place = Place.parse(url)
    found: list[str] = []

    def probe(client: Any, step: Callable[[str], None]) -> None:
        step("list")
        listed = client.list_objects_v2(Bucket=place.bucket, Prefix=place.key(""), MaxKeys=1)
        for entry in listed.get("Contents", []):
            step("read")
            client.get_object(Bucket=place.bucket, Key=entry["Key"])["Body"].close()
            found.append(entry["Key"])

    endpoint = _within(deadline_s, place, probe, DataError)
    if not found:
        raise MissingDataError(
            f"{place} at {endpoint}: there is no such {thing}; {remedy or 'correct the URL'}"
        )


def _within(deadline_s: float, place: Place, probe: _Probe, error: type[CapsdistError]) -> str:
    """Run `probe` for at most `deadline_s` and return the server's address; raise `error` if it fails."""
    outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    endpoint, doing = place.endpoint or "the default endpoint", "reach"

    def step(name: str) -> None:
        nonlocal doing
        doing = name

    def work() -> None:
        nonlocal endpoint
        try:
            client = _client(place)
            if has_credentials(client.meta.endpoint_url):  # of ~/.aws/config: the environment's was looked at
                raise _InEndpoint
            endpoint = client.meta.endpoint_url
            retrying = Retrying(
                retry=retry_if_exception(lambda failure: explain(failure).transient),
                wait=wait_random(0.05, 0.3),
                stop=stop_after_attempt(3),
                reraise=True,
            )
            retrying(probe, client, step)
            outcome.put(None)
        except BaseException as failure:
            outcome.put(failure)

    _loader()  # what a loaded machine takes to import the client is not the server's
    threading.Thread(target=work, name="capsdist-check", daemon=True).start()
    try:
        failure = outcome.get(timeout=deadline_s)
    except queue.Empty:
        text = f"no answer within {deadline_s:.0f} s"
        reason = Reason(text, "check AWS_ENDPOINT_URL, the server and the network")
    else:
        if failure is None:
            return endpoint
        reason = _IN_ENDPOINT if isinstance(failure, _InEndpoint) else explain(failure)
    raise error(f"{place} at {endpoint}: cannot {doing} ({reason.text}); {reason.remedy}")


def _client(place: Place) -> Any:
    import botocore.session  # late: takes a quarter of a second
    from botocore.config import Config

    session = botocore.session.get_session()
    session.register_component("data_loader", _loader())
    return session.create_client(
        "s3",
        endpoint_url=place.endpoint,
        region_name=place.region,
        config=Config(connect_timeout=_CONNECT_S, read_timeout=_STALL_S, retries={"total_max_attempts": 1}),
    )


@functools.cache
def _loader() -> Any:
    """Return botocore's descriptions of services: read once, as they cost ten times what a client does."""
    import botocore.loaders
    import botocore.session

    return botocore.loaders.create_loader()
