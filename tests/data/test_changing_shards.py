"""Shards that change while a run reads them: the right images, or one error; no other images, no signal."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from capsdist.data import Split, TrainStream
from capsdist.errors import DataError
from version_1 import KINDS

REMEDY = "pack the set again, intact shards are kept"


def overwrite(path: Path) -> None:
    """As `cp` and `rsync --inplace` do: other bytes into the same file, its times put back."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(bytes(255 - byte for byte in path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def truncate(path: Path) -> None:
    os.truncate(path, 600)


def replace(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    new.replace(path)


CHANGES = {
    overwrite: "wrong checksum, the file is damaged",
    truncate: "has 600 bytes instead of",
    replace: "wrong checksum, the file is damaged",
    Path.unlink: "shard is missing",
}


def age(folder: Path) -> None:
    """Make the shards old: what is written now then has another time, whatever the clock's resolution."""
    for path in folder.glob("*.tar"):
        os.utime(path, (1, 1))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_held", [0, 2, 4])
def test_a_changed_shard_gives_the_right_images_or_an_error(make_split, change, num_held, kind):
    """With memory for no, some, or all shards; all have been touched before one changes."""
    made = make_split(kind=kind)
    age(made.folder)
    split = Split(made.folder)
    split.memory_bytes = num_held * split._memory(0)
    everything = np.random.default_rng(0).permutation(103)
    assert np.array_equal(split.gather(everything)[0], made.images[everything])
    for number, shard in enumerate(made.index.shards):
        change(made.folder / shard.name)
        ids = np.arange(made.index.shard_starts[number], made.index.shard_starts[number + 1])
        if number in split._held:
            images, labels = split.gather(ids)
            assert np.array_equal(images, made.images[ids])
            assert np.array_equal(labels, made.labels[ids])
        else:
            with pytest.raises(DataError, match=rf"{shard.name}: {CHANGES[change]}.*; {REMEDY}"):
                split.gather(ids)
    assert len(split._held) == num_held


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_on_a_set_larger_than_its_memory_ends_in_mid_epoch(make_split, change, monkeypatch):
    monkeypatch.setattr("capsdist.data.pipeline._CHUNK_STEPS", 1)
    made = make_split()
    age(made.folder)
    stream = TrainStream(made.folder, seed=0, global_batch_size=3, lanes=3, window=16)
    stream.split.memory_bytes = 0
    list(stream.epoch(0))
    batches = stream.epoch(1)
    seen = [next(batches)]
    for path in made.folder.glob("*.tar"):
        change(path)
    with pytest.raises(DataError, match=rf"shard-0000\d\.tar: {CHANGES[change]}.*; {REMEDY}"):
        seen.extend(batches)
    for batch in seen:
        assert np.array_equal(batch.images.numpy(), made.images[batch.sample_ids.numpy()])


@pytest.mark.parametrize("same", [os.utime, lambda path: path.chmod(0o600), lambda path: copy_over(path)])
def test_a_file_with_the_same_content_is_read_on(make_split, same):
    made = make_split()
    age(made.folder)
    split = Split(made.folder, memory_bytes=0)
    for _ in range(2):
        assert np.array_equal(split.gather(np.arange(103))[0], made.images)
        for path in made.folder.glob("*.tar"):
            same(path)


def copy_over(path: Path) -> None:
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def test_memory_stays_within_its_limit_and_is_used(make_split):
    """Shards of later windows take the place of those that are not used any more."""
    made = make_split(900)
    sizes = {shard.size_bytes for shard in made.index.shards}
    split = Split(made.folder, memory_bytes=3 * max(sizes))
    for first in range(0, 900, 3):
        images, _ = split.gather(np.arange(first, first + 3))
        assert np.array_equal(images, made.images[first : first + 3])
        assert len(split._held) <= 3
        assert split._held_bytes <= split.memory_bytes
    assert max(split._held) == len(made.index.shards) - 1


@pytest.fixture
def few_files() -> Iterator[int]:
    """At most 256 open files, as many systems have it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield 256
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
def test_more_shards_than_files_may_be_open(make_split, few_files, memory_bytes):
    made = make_split(2 * few_files, shape=(1, 2, 2), block_size=1, shard_size=1)
    split = Split(made.folder, memory_bytes=memory_bytes)
    for _ in range(2):
        assert np.array_equal(split.gather(np.arange(2 * few_files))[0], made.images)
