"""What a user does wrong with S3, each its own one line, before anything starts and in under 10 seconds."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from places import BUCKET, Place
from seaweed import Key, S3Server
from sets import random_set

from capsdist.data import check_split
from capsdist.errors import CapsdistError, DataError, RunError
from capsdist.storage import check_readable, check_storage

pytestmark = pytest.mark.s3
REMEDY = "run: python data_prep/pack_mnist.py"


def refused(kind: type[CapsdistError], call: Callable[[], object], *fragments: str) -> str:
    """`call` fails with one line of this kind that holds `fragments`, in time; return the line."""
    start = time.monotonic()
    with pytest.raises(kind) as caught:
        call()
    assert time.monotonic() - start < 90  # 10 times the limit inside: it ends by itself
    message = str(caught.value)
    assert "\n" not in message
    assert all(fragment in message for fragment in fragments), message
    return message


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """An address where nothing listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def credentials(server: S3Server, monkeypatch: pytest.MonkeyPatch, key: Key) -> None:
    for name, value in server.environment(key).items():
        monkeypatch.setenv(name, value)


CHECKS = [
    pytest.param(RunError, check_storage, id="check_storage"),
    pytest.param(DataError, check_split, id="check_split"),
]


@pytest.mark.parametrize(("kind", "check"), CHECKS)
def test_wrong_secret(place: Place, monkeypatch, kind, check):
    credentials(place.server, monkeypatch, Key(place.server.full.access_key, "wrong"))
    where = f"{place.url} at {place.server.endpoint}: cannot list"
    refused(kind, lambda: check(place.url), where, "SignatureDoesNotMatch", "set AWS_SECRET_ACCESS_KEY")


@pytest.mark.parametrize(("kind", "check"), CHECKS)
def test_unknown_access_key(place: Place, monkeypatch, kind, check):
    credentials(place.server, monkeypatch, Key("nobody", place.server.full.secret_key))
    refused(kind, lambda: check(place.url), place.url, "InvalidAccessKeyId", "set AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize(("kind", "check"), CHECKS)
def test_no_credentials(place: Place, monkeypatch, tmp_path, kind, check):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    refused(
        kind, lambda: check(place.url), place.url, "no credentials found", "or give the machine an instance"
    )


@pytest.mark.parametrize(("kind", "check"), CHECKS)
def test_key_that_may_do_nothing(place: Place, monkeypatch, kind, check):
    credentials(place.server, monkeypatch, place.server.outsider)
    refused(
        kind, lambda: check(place.url), f"{place.url} at", "cannot list (access denied); allow it to the key"
    )


def test_key_that_may_only_read_cannot_hold_runs(place: Place, monkeypatch):
    random_set(0).write(place.url)
    credentials(place.server, monkeypatch, place.server.read_only)
    refused(RunError, lambda: check_storage(place.url), place.url, "cannot write (access denied); allow it")
    check_readable(place.url)
    check_split(place.url)


def test_key_that_may_only_read_cannot_pack(place: Place, monkeypatch):
    credentials(place.server, monkeypatch, place.server.read_only)
    refused(
        DataError, lambda: random_set(0).write(place.url), place.url, "cannot write (access denied); allow it"
    )


@pytest.mark.parametrize(("kind", "check"), CHECKS)
def test_missing_bucket(place: Place, kind, check):
    url = "s3://no-such-bucket/data"
    refused(
        kind, lambda: check(url), f"{url} at", "cannot list (there is no such bucket); create it, or correct"
    )


def test_packing_creates_no_bucket(place: Place):
    refused(DataError, lambda: random_set(0).write("s3://no-such-bucket/data"), "there is no such bucket")
    names = [bucket["Name"] for bucket in place.server.client().list_buckets()["Buckets"]]
    assert names == [BUCKET]


@pytest.mark.parametrize("check", [check_readable, check_split])
def test_missing_data_set(place: Place, check):
    message = f"{place.url} at {place.server.endpoint}: there is no such data set; {REMEDY}"
    assert refused(DataError, lambda: check(place.url, remedy=REMEDY)) == message


def test_a_neighbour_whose_name_begins_alike_is_not_the_data_set(place: Place):
    random_set(0).write(f"{place.url}/train2")
    refused(DataError, lambda: check_split(f"{place.url}/train"), "there is no such split", "or pack it")


@pytest.mark.parametrize(("kind", "check"), CHECKS)
def test_nothing_listens_there(place: Place, monkeypatch, closed, kind, check):
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed)
    refused(
        kind,
        lambda: check(place.url),
        f"{place.url} at {closed}: cannot list (cannot be reached); check AWS_",
    )


@pytest.mark.parametrize(("kind", "check"), CHECKS)
def test_unknown_host(place: Place, monkeypatch, kind, check):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid")
    refused(kind, lambda: check(place.url), "no-such-host.invalid", "check AWS_ENDPOINT_URL")


def test_tls_where_none_is_spoken(place: Place, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", place.server.endpoint.replace("http", "https"))
    refused(RunError, lambda: check_storage(place.url), "does not speak TLS", "http:// in AWS_ENDPOINT_URL")


@pytest.mark.parametrize(("kind", "check"), CHECKS[1:])
def test_a_server_that_never_answers(place: Place, monkeypatch, silent, kind, check):
    monkeypatch.setenv("AWS_ENDPOINT_URL", silent)
    refused(
        kind, lambda: check(place.url), f"{place.url} at {silent}: cannot list (no answer within 9 s); check"
    )


def test_a_limit_of_ones_own(place: Place, monkeypatch, silent):
    monkeypatch.setenv("AWS_ENDPOINT_URL", silent)
    refused(RunError, lambda: check_storage(place.url, deadline_s=1), "(no answer within 1 s)")


def test_a_usable_place_passes_and_stays_as_it_was(place: Place):
    place.put("other", b"content")
    check_storage(place.url)
    assert place.objects() == {"other": b"content"}


def test_the_endpoint_may_stand_in_the_url(place: Place, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    address = place.server.endpoint.removeprefix("http://")
    url = f"{place.url}?endpoint_override={address}&scheme=http&region=us-east-1"
    check_storage(url)
    index = random_set(1).write(url)
    assert check_split(url) == index


@pytest.mark.parametrize(("kind", "check"), CHECKS)
@pytest.mark.parametrize(
    "form", ["s3://{key}:{secret}@{rest}", "s3://{rest}?access_key={key}&secret_key={secret}"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(place: Place, kind, check, form):
    full = place.server.full
    url = form.format(key=full.access_key, secret=full.secret_key, rest=place.url.removeprefix("s3://"))
    message = refused(kind, lambda: check(url), f"{place.url}: credentials do not belong in a URL")
    assert full.secret_key not in message
    assert full.access_key not in message


def test_the_server_is_real(place: Place):
    """Mutant: the keys of this server matter, so the refusals above are its own."""
    client = place.server.client(Key(place.server.full.access_key, "wrong"))
    with pytest.raises(client.exceptions.ClientError, match="SignatureDoesNotMatch"):
        client.list_objects_v2(Bucket=BUCKET)
