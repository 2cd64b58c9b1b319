"""What an s3:// URL names, and how folders and URLs are continued."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capsdist.errors import DataError, RunError
from capsdist.storage import Place, is_remote, join
from capsdist.storage.place import has_credentials, in_uploaded_package, url_fault
from capsdist.storage.s3_folder import S3Folder


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
        "s3://KEY:PLAN/TED@bucket/a",
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


@settings(deadline=None)
@given(st.text(), st.sampled_from(["", "x/", "/"]))
@example("\n/", "")  # the message says where the line break is, without one
def test_ray_finds_the_objects_where_ours_are_written(text, before):
    """Either both mean the same bucket and key, or the URL is refused."""
    from ray.train.v2._internal.execution.storage import get_fs_and_path

    prefix = (before + text).replace("?", "")
    url = f"s3://bucket/{prefix}?region=eu-west-1&endpoint_override=127.0.0.1:1&scheme=http"
    if url_fault(url):
        with pytest.raises(DataError) as caught:
            Place.parse(url)
        assert str(caught.value).isprintable()
        return
    place = S3Folder(join(url, "run")).place
    _, path = get_fs_and_path(Place.parse(url).uri)
    assert Path(path, "run", "step_00000003").as_posix() == f"bucket/{place.key('step_00000003')}"


@pytest.mark.parametrize(
    "prefix", ["a b", "a%20b", "a#b", "a[b]", "é", "a|b", "a+b&c=d", "a@b", "'\"\\^`{}<>", "日本"]
)
def test_odd_prefixes_are_taken_literally(prefix):
    place = Place.parse(f"s3://bucket/{prefix}/runs")
    assert place.key("x") == f"{prefix}/runs/x"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://b/a//c", "two slashes"),
        ("s3://b//a", "two slashes"),
        ("s3://b/a/../c", "'.' or '..'"),
        ("s3://b/./c", "'.' or '..'"),
        ("s3://b/a\tb", "cannot be printed"),
        ("s3://b\u00e9/a", "does not name a bucket"),
        ("file:///a%20b", "write the path without file://"),
        ("file://host/a", "write the path without file://"),
        ("file:///a#b", "write the path without file://"),
    ],
)
def test_what_ray_would_read_in_another_way_is_refused(url, reason):
    fault = url_fault(url)
    assert fault is not None
    assert reason in str(fault)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("endpoint", ["http://me:PLANTED@host:9000", "https://PLANTED@host"])
def test_credentials_in_an_endpoint_are_refused_and_not_repeated(monkeypatch, name, endpoint):
    monkeypatch.setenv(name, endpoint)
    with pytest.raises(DataError, match=rf"^s3://bucket/a: {name} holds a user or a password") as caught:
        Place.parse("s3://bucket/a")
    assert "PLANTED" not in str(caught.value)
    monkeypatch.delenv(name)
    with pytest.raises(DataError, match="endpoint_override holds") as caught:
        Place.parse(f"s3://bucket/a?endpoint_override={endpoint}")
    assert "PLANTED" not in str(caught.value)


def test_addresses_without_credentials():
    assert not any(map(has_credentials, [None, "", "http://h:1", "http://h/a@b", "h:1"]))


def test_what_lies_in_an_uploaded_package(tmp_path, monkeypatch):
    package = tmp_path / "session_x/runtime_resources/working_dir_files/_ray_pkg_1"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    (package / "out").symlink_to(tmp_path)
    assert in_uploaded_package("runs")
    assert in_uploaded_package(str(package / "a/b"))
    assert not in_uploaded_package(str(tmp_path / "runs"))
    assert not in_uploaded_package("out/runs")
