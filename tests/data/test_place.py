"""What an s3:// URL names, and how folders and URLs are continued."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsdist.errors import DataError, RunError
from capsdist.storage import Place, is_remote, join


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket", Place("bucket", "")),
        ("s3://bucket/", Place("bucket", "")),
        ("s3://bucket/a/b/", Place("bucket", "a/b")),
        ("s3://bucket/a#b", Place("bucket", "a#b")),
        (
            "s3://bucket/a?endpoint_override=127.0.0.1:9000&scheme=http",
            Place("bucket", "a", "http://127.0.0.1:9000"),
        ),
        ("s3://b/a?endpoint_override=s3.local&region=eu", Place("b", "a", "https://s3.local", "eu")),
        ("s3://b/a?endpoint_override=http://h:1", Place("b", "a", "http://h:1")),
    ],
)
def test_a_url_names_a_place(url, place):
    assert Place.parse(url) == place


def test_keys_and_text():
    assert Place("bucket", "a/b").key("c") == "a/b/c"
    assert Place("bucket", "").key("c") == "c"
    assert str(Place("bucket", "a", "http://h:1", "eu")) == "s3://bucket/a"
    assert str(Place("bucket", "")) == "s3://bucket"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://bucket/a", "gs://bucket/a: gs:// is not supported; give an s3:// URL or a local path"),
        ("s3://", "s3://: does not name a bucket; write s3://bucket/prefix"),
        ("s3:///a", "s3:///a: does not name a bucket; write s3://bucket/prefix"),
        ("s3://bucket:9000/a", "s3://bucket:9000/a: does not name a bucket; write"),
        (
            "s3://bucket/a?colour=red",
            "s3://bucket/a: unknown option 'colour'; there are endpoint_override, region,",
        ),
    ],
)
def test_wrong_urls_are_refused(url, message):
    with pytest.raises(RunError) as caught:
        Place.parse(url, error=RunError)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:PLANTED@bucket/a",
        "s3://PLANTED@bucket/a",
        "s3://bucket/a?secret_key=PLANTED&access_key=K",
        "s3://bucket/a?session_token=PLANTED",
        "s3://bucket/a?secret_key=",
    ],
)
def test_credentials_are_refused_and_not_repeated(url):
    with pytest.raises(
        DataError, match=r"^s3://bucket/a: credentials do not belong in a URL; take them out"
    ) as caught:
        Place.parse(url)
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("s3://b/a", True), ("gs://b", True), ("file:///a", False), ("/a/b", False), (Path("a"), False)],
)
def test_what_is_remote(path, expected):
    assert is_remote(path) == expected


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("s3://b", "s3://b/mnist/train"),
        ("s3://b/data/", "s3://b/data/mnist/train"),
        ("s3://b/data?region=eu&scheme=http", "s3://b/data/mnist/train?region=eu&scheme=http"),
        ("file:///data", "file:///data/mnist/train"),
        ("data", "data/mnist/train"),
        (Path("/data"), "/data/mnist/train"),
    ],
)
def test_joining(root, expected):
    assert join(root, "mnist", "train") == expected
