"""A data set on S3 whose index is forged or whose cached shards change: refused, or fetched again."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import Place
from sets import random_set
from test_data_on_s3 import refused, shard_reads

from capsdist.data import Split, check_split, verify_split
from faults.wire import FaultProxy
from properties.damage import PHASES, Accident, accidents
from properties.set_steps import read_or_refused, write_set

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
def test_a_cached_shard_that_is_overwritten_while_it_is_read_is_fetched_again(
    place: Place, proxy: FaultProxy, memory_bytes
):
    """With all in memory nothing is read again; without, the copy is replaced once."""
    data = random_set(26)
    index = data.write(place.url)
    split = Split(place.url, memory_bytes=memory_bytes)
    for _ in range(3):
        assert np.array_equal(split.gather(np.arange(103))[0], data.images)
    path = place.cache / index.shards[1].sha256
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    for _ in range(2):
        assert np.array_equal(split.gather(np.arange(103))[0], data.images)
    again = [] if memory_bytes else [index.shards[1]]
    assert shard_reads(proxy) == Counter({s.name: 1 + (s in again) for s in index.shards})


@pytest.mark.parametrize("path", ["block_size", "num_samples", "fields.0.shape", "classes", "shards.1.name"])
def test_a_forged_index_is_refused_although_its_digest_fits(place: Place, path):
    random_set(27).write(place.url)
    document = json.loads(place.objects()["index.json"])
    value, parts = document, path.split(".")
    for part in parts[:-1]:
        value = value[int(part)] if part.isdecimal() else value[part]
    forged = {"block_size": 32, "num_samples": 104, "fields.0.shape": [2, 9, 99], "classes": []}
    value[parts[-1]] = forged.get(path, "../shard-00000.tar")
    del document["digest"]
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    place.put("index.json", json.dumps(document).encode())
    for read in (check_split, verify_split, Split):
        refused(lambda read=read: read(place.url), f"{place.url}/index.json: ", "pack it")


def test_a_split_of_another_name_is_told_which_there_are(place: Place):
    random_set(28).write(f"{place.url}/set/train")
    random_set(28).write(f"{place.url}/set/test")
    message = f"{place.url}/set/trian: there is no such split, {place.url}/set has test, train; name"
    refused(lambda: check_split(f"{place.url}/set/trian", remedy="do it"), message, "do it")


def test_a_shard_that_grew_is_not_read(place: Place):
    index = random_set(12).write(place.url)
    split = Split(place.url)
    place.put("shard-00001.tar", place.objects()["shard-00001.tar"] + b"x")
    refused(
        lambda: split.gather(np.arange(index.num_samples)),
        f"{place.url}/shard-00001.tar is larger than {index.shards[1].size_bytes:,} bytes; ",
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split in a folder that is not changed."""
    return write_set(tmp_path_factory.mktemp("whole") / "train")


@pytest.mark.parametrize("num_cases", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_a_damaged_set_is_read_rightly_or_refused(whole: Path, place: Place, num_cases: int):
    """As tests/properties/test_damaged_set.py for objects."""

    @settings(max_examples=num_cases, deadline=None, phases=PHASES)
    @given(
        happened=st.lists(accidents(contents_only=True), min_size=1, max_size=3),
        lost=st.sampled_from([None, None, "index.json", "shard-00001.tar"]),
    )
    def case(happened: list[Accident], lost: str | None) -> None:
        name = uuid.uuid4().hex[:8]
        with tempfile.TemporaryDirectory() as text:
            copy = Path(shutil.copytree(whole, Path(text) / "train"))
            for each in happened:
                each.apply(copy, copy)
            for path in copy.iterdir():
                if path.name != lost:
                    place.put(f"{name}/train/{path.name}", path.read_bytes())
        read_or_refused(f"{place.url}/{name}/train")

    case()
