"""Resident sets: batches equal to those from files, what is chosen, what does not fit, and what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from recipe_sets import make_recipes
from torch import Tensor

from capsdist.bench.pipeline_resident import resident_figures
from capsdist.data import Batch, TrainStream
from capsdist.data import resident as residence
from capsdist.data.recipes.on_device import DeviceFrames
from capsdist.data.recipes.overlay import Frames
from capsdist.data.recipes.source import Recipes
from capsdist.errors import DataError
from capsdist.storage.shared_memory import SHARED_MEMORY, NoRoomError
from encoded_images import Images, write

KINDS = ("version 1", "none", "zstd", "several labels", "encoded", "recipes", "parts")
OPTIONS = {"seed": 3, "global_batch_size": 21, "lanes": 3, "window": 16}
CPU = torch.device("cpu")


@pytest.fixture
def make(make_split, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a split of a kind and returns its folder."""

    def folder_of(kind: str, seed: int = 0) -> Path:
        if kind == "encoded":
            write(tmp_path / "encoded", Images(53, seed=seed, side=7, suffixes=("png",)))
            return tmp_path / "encoded"
        if kind in ("recipes", "parts"):
            return make_recipes(tmp_path / kind, 31, images_seed=seed, partners=3, first=2, last=29).folder
        if kind == "several labels":
            return make_split(seed=seed, labels_each=3).folder
        return make_split(seed=seed, kind=kind).folder

    return folder_of


@pytest.fixture
def opened() -> Iterator[Callable[..., TrainStream]]:
    """Return a function that makes a stream, closed at the end."""
    streams: list[TrainStream] = []

    def make_stream(folder: Path, resident: str, **options) -> TrainStream:
        mode = "never" if resident == "by the consumer" else resident
        options = {**OPTIONS, "parts": folder.parent.name == "parts", **options}
        stream = TrainStream(folder, resident=mode, **options)
        if resident == "by the consumer":  # what a GPU does, on the CPU
            split = stream.split
            recipes = isinstance(split, Recipes)
            kept = residence._Recipes(folder, split, stream.parts) if recipes else None
            stream._gather = (kept or residence._Images(folder, split)).on(CPU)
            stream._gather.deferred = True
        streams.append(stream)
        return stream

    yield make_stream
    for stream in streams:
        stream.close()


def same(one: object, other: object) -> bool:
    """Are two batches, or partners, equal in every bit?"""
    for name in (field.name for field in fields(one)):  # type: ignore[arg-type]
        left, right = getattr(one, name), getattr(other, name)
        if isinstance(left, Tensor):
            equal = left.dtype == right.dtype and torch.equal(left, right)
        elif isinstance(left, int) or left is None:
            equal = left == right
        else:
            equal = same(left, right)
        if not equal:
            return False
    return True


def run(stream: TrainStream, first: int = 0) -> list[Batch]:
    """Batches of two epochs from step `first` of the first one on."""
    return [*stream.epoch(1, first), *stream.epoch(2)]


@pytest.mark.parametrize("resident", ["device", "shared", "by the consumer"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"partners": True, "world_size": 2, "rank": 1},
        {"last_batch": "carry", "partners": True, "world_size": 4, "rank": 2},
        {"last_batch": "carry", "world_size": 5, "global_batch_size": 6, "rank": 4},
    ],
    ids=["alone", "partners", "carry", "many ranks"],
)
def test_batches_are_those_from_files(make, opened, kind, resident, options):
    folder = make(kind, seed=len(kind) + len(options))
    plain, kept = opened(folder, "never", **options), opened(folder, resident, **options)
    if resident != "by the consumer":
        assert (plain.resident, kept.resident) == ("never", resident)
    for first in (0, 2):
        expected, found = run(plain, first), run(kept, first)
        assert all((batch.parts is not None) == (kind == "parts") for batch in found)
        assert len(found) == len(expected) > 2
        assert all(map(same, found, expected))
    assert kept.position(1, 2) == plain.position(1, 2)


@pytest.mark.parametrize("resident", ["device", "shared", "by the consumer"])
def test_no_file_is_read_after_the_beginning(make, opened, resident):
    folder = make("none")
    expected = run(opened(folder, "never"))
    stream = opened(folder, resident)
    for path in folder.iterdir():
        path.unlink()
    assert all(map(same, run(stream), expected))


@pytest.mark.parametrize("resident", ["device", "shared"])
def test_damage_is_found_before_the_first_step(make, opened, resident):
    folder = make("none")
    path = folder / "shard-00002.tar"
    content = bytearray(path.read_bytes())
    content[1100] ^= 4
    path.write_bytes(content)
    for _ in range(2):  # also by the next worker, which does not find a set half read
        with pytest.raises(DataError, match=r"shard-00002\.tar: wrong checksum, the file is damaged"):
            opened(folder, resident)


def test_encoded_images_are_decoded_to_the_size_that_is_asked_for(tmp_path, opened):
    """Sizes and sets have shared memory of their own."""
    write(tmp_path / "set", Images(20))
    for size in ((5, 6), (6, 5), 4):
        plain = opened(tmp_path / "set", "never", decode_size=size, global_batch_size=9)
        kept = opened(tmp_path / "set", "shared", decode_size=size, global_batch_size=9)
        assert all(map(same, run(kept), run(plain)))


# ---- what is chosen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [1, 2])
def test_auto_keeps_what_need_not_be_decoded(make, opened, kind, workers):
    expected = "never" if kind == "encoded" else "device" if workers == 1 else "shared"
    assert opened(make(kind), "auto", workers_on_node=workers).resident == expected


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("free", "kept"), [(1, True), (0, False)])
def test_auto_takes_at_most_a_quarter(make, opened, monkeypatch, workers, free, kept):
    folder = make("none")
    need = 103 * (2 * 5 * 3 + 8)
    monkeypatch.setattr(residence, "free_memory", lambda: 4 * need - 1 + free)
    assert (opened(folder, "auto", workers_on_node=workers).resident != "never") is kept


@pytest.mark.parametrize("resident", ["device", "shared"])
@pytest.mark.parametrize("kind", ["none", "encoded", "recipes"])
def test_a_set_that_does_not_fit_is_refused(make, opened, monkeypatch, kind, resident):
    monkeypatch.setattr(residence, "free_memory", lambda: 1000)
    message = (
        rf"data\.resident={resident} takes [\d,]+ bytes, 1,000 are free there; set --data.resident never"
    )
    with pytest.raises(NoRoomError, match=message):
        opened(make(kind), resident)


def test_a_system_without_shared_memory_is_refused_or_not_used(make, opened, monkeypatch):
    monkeypatch.setattr(residence, "free_shared_memory", lambda: 0)
    folder = make("none")
    with pytest.raises(NoRoomError, match=r"data\.resident=shared takes 3,914 bytes, 0 are free there"):
        opened(folder, "shared")
    assert opened(folder, "auto", workers_on_node=2).resident == "never"


# ---- what is shared

WORKER = """
import sys
from capsdist.data import TrainStream
stream = TrainStream(sys.argv[1], seed=3, global_batch_size=21, lanes=3, window=16, resident="auto",
    workers_on_node=2, rank=int(sys.argv[2]), world_size=2)
seen = [int(batch.images.sum()) for batch in stream.epoch(1)]
print(stream.resident, *seen, flush=True)
sys.stdin.read()
stream.close()
"""


def shared_files() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob(f"capsdist-{os.geteuid()}-*")}


def test_two_workers_share_one_copy(make_split, opened):
    seed = int.from_bytes(os.urandom(4), "big")  # no other test has this set
    folder = make_split(seed=seed).folder
    before = shared_files()
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(rank)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank, worker in enumerate(workers):
            plain = opened(folder, "never", rank=rank, world_size=2)
            sums = [str(int(batch.images.sum())) for batch in plain.epoch(1)]
            assert worker.stdout is not None
            assert worker.stdout.readline().split() == ["shared", *sums]
        stream = opened(folder, "shared")
        [name] = [Path(stream._gather.close.__self__.path).name]
        assert name in shared_files() - before
    finally:
        for worker in workers:
            worker.communicate("")
    assert [worker.returncode for worker in workers] == [0, 0]
    assert name in shared_files()
    stream.close()
    assert name not in shared_files()
    assert len(run(stream)) == 10  # batches go on


# ---- pixels of recipes on a device


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("shape", "pad", "shift"), [((1, 7, 7), 2, 2), ((1, 6, 9), 1, 3), ((3, 5, 4), 0, 4), ((2, 4, 4), 3, 0)]
)
def test_overlays_on_a_device_are_those_of_the_host(shape, pad, shift, seed):
    rng = np.random.default_rng(seed)
    frames = Frames(9, shape, pad=pad, shift=shift)
    frames.digits[:] = rng.integers(0, 256, frames.digits.shape)
    places, shifts = rng.integers(0, 9, (130, 2)), rng.integers(-shift, shift + 1, (130, 2, 2))
    shifts[0], places[0] = [[shift, shift], [-shift, -shift]], [8, 0]  # the ends of the buffer
    expected = np.empty((130, shape[0], shape[1] + 2 * pad, shape[2] + 2 * pad), np.uint8)
    frames.overlay_into(places, shifts, expected)
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        on_device = DeviceFrames(frames, torch.device(device))
        parts = on_device.separate(*(torch.from_numpy(each).to(device) for each in (places, shifts)))
        found = on_device.added(parts)
        assert np.array_equal(found.cpu().numpy(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resident", ["device", "shared", "auto"])
def test_batches_on_a_gpu_are_those_from_files(make, opened, kind, resident):
    options = {"last_batch": "carry", "partners": True, "world_size": 2, "rank": 1}
    folder = make(kind)
    kept = opened(folder, resident, device="cuda", pin=True, **options)
    found, expected = run(kept), run(opened(folder, "never", **options))
    if kept.resident == "device":
        assert all(batch.to("cuda").images is batch.images for batch in found)  # nothing is copied
    assert all(map(same, (batch.to("cpu") for batch in found), expected))


def test_the_benchmark_has_a_rate():
    images, labels = np.zeros((300, 1, 28, 28), np.uint8), np.arange(300) % 10
    found = resident_figures(images, labels, global_batch_size=24, repeats=1)
    assert found.pop("resident_images_per_s") > 0
    assert not found
