"""Answers spoiled on the wire: healed with the right bytes, or a loud failure in time, never other bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from places import Place
from sets import random_set

from capsdist.data import Split, TrainStream, check_split, verify_split
from capsdist.errors import DataError
from capsdist.storage import open_folder, s3_parts
from faults.wire import FaultProxy, running_proxy

pytestmark = pytest.mark.s3
FAULTS = ["truncate", "flip", "503", "reset", "stall"]
SHORT_S = 2.0  # a deadline that a test can wait for


@pytest.fixture
def proxy(place: Place, monkeypatch) -> Iterator[FaultProxy]:
    """A proxy that the code under test goes through; a stalled answer is given up after 10 s."""
    monkeypatch.setenv("CAPSDIST_S3_DEADLINE_S", "30")
    with running_proxy(place.server.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.mark.parametrize(
    ("fault", "times"), [("truncate", 2), ("flip", 2), ("503", 3), ("reset", 2), ("stall", 1)]
)
def test_a_fault_that_passes_is_healed(place: Place, proxy: FaultProxy, fault, times):
    data = random_set(0)
    data.write(place.url)
    proxy.spoil(fault, "shard-00002.tar", times=times)
    ids = np.arange(103)
    images, labels = Split(place.url).gather(ids)
    assert np.array_equal(images, data.images)
    assert np.array_equal(labels, data.labels)
    assert proxy.num_faults == times


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_a_loud_failure_in_time(place: Place, proxy: FaultProxy, monkeypatch, fault):
    shard = random_set(1).write(place.url).shards[2]
    stream = TrainStream(place.url, seed=0, global_batch_size=50, lanes=1)
    Split(place.url).gather(np.array([0, 30, 100]))  # the other shards, so that nothing else can be late
    monkeypatch.setenv("CAPSDIST_S3_DEADLINE_S", str(SHORT_S))
    proxy.spoil(fault, shard.name)
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        list(stream.epoch(0))
    assert time.monotonic() - start < 10 * SHORT_S + 50  # it ends by itself
    message = str(caught.value)
    assert message.startswith(f"{place.url}/{shard.name} (sha256 {shard.sha256}): cannot be read (")
    assert "\n" not in message
    assert " attempts in " in message
    assert list(place.cache.glob(f"{shard.sha256}*")) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoiled_index_is_healed(place: Place, proxy: FaultProxy, fault):
    index = random_set(2).write(place.url)
    proxy.spoil(fault, "index.json", times=1)
    stream = TrainStream(place.url, seed=0, global_batch_size=50, lanes=1)
    assert stream.split.index == index
    assert proxy.num_faults == 1


@pytest.mark.parametrize(
    ("fault", "request_line"),
    [("reset", "PUT"), ("503", "uploadId="), ("reset", "POST"), ("truncate", "GET"), ("reset", "GET")],
)
def test_a_fault_in_a_part_is_healed(
    place: Place, proxy: FaultProxy, tmp_path: Path, monkeypatch, fault, request_line
):
    """POST begins an upload and completes it: of both the answer is lost."""
    monkeypatch.setattr(s3_parts, "PART_BYTES", 5 * 2**20)
    content = np.random.default_rng().bytes(12 * 2**20)
    (tmp_path / "large").write_bytes(content)
    folder = open_folder(place.url)
    proxy.spoil(fault, request_line, times=2)
    folder.store(tmp_path, "step", marker="none")
    with folder.fetched("step", {"large": len(content)}) as copy:
        assert (copy / "large").read_bytes() == content
    assert proxy.num_faults == 2


def test_a_part_that_cannot_be_uploaded_leaves_no_object(
    place: Place, proxy: FaultProxy, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(s3_parts, "PART_BYTES", 5 * 2**20)
    monkeypatch.setenv("CAPSDIST_S3_DEADLINE_S", "10")
    (tmp_path / "large").write_bytes(bytes(12 * 2**20))
    proxy.spoil("503", "partNumber=")
    with pytest.raises(DataError, match=r"/step/large: cannot be written \(the server answers SlowDown, "):
        open_folder(place.url).store(tmp_path, "step", marker="none")
    assert place.objects() == {}
    assert any(line.startswith("DELETE") and "uploadId=" in line for line in proxy.requests)


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_a_lost_answer_to_a_write_does_no_harm(place: Place, proxy: FaultProxy, fault):
    """The server has stored the index, but the writer does not know: it must not take it for another's."""
    proxy.spoil(fault, "PUT", times=1)
    folder = open_folder(place.url)
    content = b"x" * 5000
    assert folder.write("new", content, new=True)
    assert place.objects() == {"new": content}
    assert proxy.num_faults == 1


def test_a_check_survives_an_overloaded_server(place: Place, proxy: FaultProxy):
    index = random_set(3).write(place.url)
    proxy.spoil("503", "list-type=2", times=2)
    assert check_split(place.url) == index
    assert proxy.num_faults == 2


def test_verification_heals_too(place: Place, proxy: FaultProxy):
    index = random_set(4).write(place.url)
    proxy.spoil("flip", "shard-00001.tar", times=2)
    assert verify_split(place.url) == index
    assert proxy.num_faults == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_the_proxy_spoils(place: Place, proxy: FaultProxy, fault):
    """Mutant: a reader without deadline, retry and checksum fails, or reads other bytes, under each fault."""
    import http.client
    from urllib.parse import urlsplit

    content = bytes(range(256)) * 20
    place.put("public", content)
    url = place.server.client().generate_presigned_url(
        "get_object", Params={"Bucket": place.bucket, "Key": f"{place.prefix}/public"}
    )
    proxy.spoil(fault, "public", times=1)
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=1)
    connection.request("GET", url.partition(place.server.endpoint)[2], headers={"Host": urlsplit(url).netloc})
    try:
        found = connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        found = b""
    connection.close()
    assert proxy.num_faults == 1
    assert found != content
