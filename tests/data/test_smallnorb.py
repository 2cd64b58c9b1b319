"""smallNORB: matrices in the exact format, the true factors of the test set, and twelve real pairs."""

from __future__ import annotations

import gzip
import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cifar_batches import md5
from original_files import matrix_bytes

from capsdist.data.sets import smallnorb
from capsdist.data.sets.norb import parse_matrix
from capsdist.data.sets.originals import Original
from capsdist.data.sets.smallnorb import load_smallnorb, novel_views
from capsdist.errors import DataError

AXES = {"instance": [0, 1, 2, 3, 5], "elevation": range(9), "azimuth": range(0, 36, 2), "lighting": range(6)}


def true_factors() -> tuple[np.ndarray, np.ndarray]:
    """Categories int32 [24300] and info int32 [24300,4] of the test set, which are in a regular order."""
    info = np.array(list(itertools.product(*AXES.values())), np.int32)
    return np.tile(np.arange(5, dtype=np.int32), len(info)), np.repeat(info, 5, axis=0)


def test_the_true_files_of_factors() -> None:
    """Their bytes follow from the format and the order: the published checksums confirm both."""
    labels, info = true_factors()
    for kind, array in (("cat", labels), ("info", info)):
        data = matrix_bytes(array)
        assert np.array_equal(parse_matrix(smallnorb._FILES["test"][kind].check(data, kind), kind), array)


@pytest.mark.parametrize("shape", [(5,), (5, 4), (3, 2, 7), (3, 2, 4, 5), (0, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_matrices_are_read(shape: tuple[int, ...], dtype: type) -> None:
    array = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
    found = parse_matrix(matrix_bytes(array), "x")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x: starts with b'', not a matrix of uint8 or int32; get the original"),
        (b"\0" * 40, "not a matrix of uint8 or int32"),
        (struct.pack("<Iiiii", 0x1E3D4C51, 1, 1, 1, 1) + bytes(4), "not a matrix of uint8 or int32"),
        (struct.pack(">Iiiii", 0x1E3D4C55, 1, 1, 1, 1) + bytes(1), "not a matrix of uint8 or int32"),
        (struct.pack("<Iiiii", 0x1E3D4C55, 0, 1, 1, 1) + bytes(1), "not a matrix of uint8 or int32"),
        (struct.pack("<Iiiii", 0x1E3D4C55, 1000, 1, 1, 1) + bytes(1), "not a matrix of uint8 or int32"),
        (struct.pack("<Iii", 0x1E3D4C55, 1, 1), r"x: has 12 bytes, its header says \(\); get the original"),
        (struct.pack("<Iiiii", 0x1E3D4C55, 2, -1, -3, 1) + bytes(3), r"its header says \(-1, -3\)"),
        (matrix_bytes(np.zeros((2, 3), np.int32))[:-1], r"x: has 43 bytes, its header says \(2, 3\)"),
        (matrix_bytes(np.zeros((2, 3), np.uint8)) + b"\0", r"x: has 27 bytes, its header says \(2, 3\)"),
    ],
)
def test_broken_matrices(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_matrix(data, "x")


# ---- the set


def write_split(
    folder: Path,
    prefix: str,
    images: np.ndarray,
    labels: np.ndarray,
    info: np.ndarray,
    *,
    zipped: bool = False,
) -> dict[str, Original]:
    folder.mkdir(exist_ok=True)
    table = {}
    for kind, array in (("dat", images), ("cat", labels), ("info", info)):
        data, name = matrix_bytes(array), f"{prefix}-{kind}.mat"
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
        table[kind] = Original(name, md5(data), "md5")
    return table


def made(num: int, seed: int, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """Random pairs of which some are of every view."""
    rng = np.random.default_rng(seed)
    info = np.stack([rng.choice(list(codes), num) for codes in AXES.values()], axis=1).astype(np.int32)
    labels = rng.integers(0, 5, num).astype(np.int32)
    images = rng.integers(0, 256, (num, 2, 96, 96), dtype=np.uint8)
    return {"images": images, "labels": labels, "info": info} | changes


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, dict, dict]:
    held = {"train": made(40, 1), "test": made(60, 2)}
    table = {split: write_split(tmp_path / "norb", split, **arrays) for split, arrays in held.items()}
    return tmp_path / "norb", table, held


@pytest.mark.parametrize("zipped", [True, False])
def test_pairs_and_factors_are_read(tmp_path: Path, zipped: bool) -> None:
    held = made(20, 0)
    table = {"train": write_split(tmp_path, "x", **held, zipped=zipped)}
    samples, factors = load_smallnorb(tmp_path, table)["train"]
    found = samples.read(3, 17)
    assert np.array_equal(found["image"], held["images"][3:17])
    assert np.array_equal(found["label"], held["labels"][3:17])
    for column, name in enumerate(AXES):
        assert found[name].dtype == np.int64
        assert np.array_equal(found[name], held["info"][3:17, column])
        assert np.array_equal(factors[name], held["info"][:, column])
    assert samples.fields.keys() == {"image", "label", *AXES}


@pytest.mark.parametrize(("factor", "views"), [("azimuth", {0, 2, 4, 30, 32, 34}), ("elevation", {0, 1, 2})])
def test_novel_views(files: tuple[Path, dict, dict], factor: str, views: set[int]) -> None:
    folder, table, held = files
    splits = novel_views(load_smallnorb(folder, table), factor)
    column = list(AXES).index(factor)
    for split, source, familiar in (
        ("train", "train", True), ("validation", "test", True), ("test", "test", False)
    ):  # fmt: skip
        chosen = np.isin(held[source]["info"][:, column], list(views)) == familiar
        found = splits[split].read(0, len(splits[split]))
        assert 0 < len(splits[split]) == chosen.sum()
        assert (set(found[factor].tolist()) <= views) == familiar
        assert np.array_equal(found["image"], held[source]["images"][chosen])
        assert np.array_equal(found["label"], held[source]["labels"][chosen])


def test_novel_views_of_the_true_test_set() -> None:
    """A third of the test set is in training views; the rest is the test, as in the paper."""
    _, info = true_factors()
    for column, name in ((1, "elevation"), (2, "azimuth")):
        assert np.isin(info[:, column], smallnorb._TRAINING_VIEWS[name]).sum() == 24300 // 3


def test_images_are_read_when_they_are_asked_for(files: tuple[Path, dict, dict]) -> None:
    folder, table, _ = files
    (folder / "test-dat.mat").write_bytes(b"something else")
    splits = load_smallnorb(folder, table)
    assert len(splits["train"][0].read(0, 40)["image"]) == 40
    with pytest.raises(DataError, match=r"test-dat\.mat: md5 of its content is .*; get the file again"):
        splits["test"][0].read(0, 1)


@pytest.mark.parametrize("kind", ["dat", "cat", "info"])
def test_a_file_is_missing(files: tuple[Path, dict, dict], kind: str) -> None:
    folder, table, _ = files
    (folder / f"train-{kind}.mat").unlink()
    with pytest.raises(
        DataError, match=rf"holds neither train-{kind}\.mat nor train-{kind}\.mat\.gz; give the"
    ):
        load_smallnorb(folder, table)


def wrong_info(column: int, code: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(info: np.ndarray) -> np.ndarray:
        info = info.copy()
        info[7, column] = code
        return info

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("labels", lambda labels: labels + 5, r"cat\.mat: label of pair 0 is \d"),
        ("info", wrong_info(0, 10), r"info\.mat: instance of pair 7 is 10"),
        ("info", wrong_info(1, 9), r"info\.mat: elevation of pair 7 is 9"),
        ("info", wrong_info(2, 3), r"info\.mat: azimuth of pair 7 is 3"),
        ("info", wrong_info(3, -1), r"info\.mat: lighting of pair 7 is -1"),
        ("info", lambda info: info[:-1], r"info\.mat: has shape \(19, 4\) for labels \(20,\), not \(N, 4\)"),
        ("info", lambda info: info[:, :3], r"info\.mat: has shape \(20, 3\)"),
        ("labels", lambda labels: labels[:, None], r"for labels \(20, 1\)"),
        (
            "images",
            lambda images: images[:, :1],
            r"field image is uint8 \[20, 1, 96, 96\], not uint8 \[20, 2",
        ),
        ("images", lambda images: images[:19], r"field image is uint8 \[19, 2"),
    ],
)
def test_another_structure(tmp_path: Path, name: str, change: Callable, message: str) -> None:
    held = made(20, 0)
    table = {"train": write_split(tmp_path, "x", **(held | {name: change(held[name])}))}
    with pytest.raises(DataError, match=f"{message}.*; get the original"):
        load_smallnorb(tmp_path, table)["train"][0].read(0, 1)


# ---- the real pairs, which the authors of capsule networks publish as TensorFlow records


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def messages(data: bytes) -> list[bytes]:
    """The fields of a protobuf message all of whose fields are messages, texts or bytes."""
    found, at = [], 0
    while at < len(data):
        key, at = varint(data, at)
        assert key & 7 == 2
        size, at = varint(data, at)
        found.append(data[at : at + size])
        at += size
    return found


def records(path: Path) -> list[dict[str, bytes]]:
    """Every record of a file: Example.features.feature, a map of names to lists with one value of bytes."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        (features,) = messages(data[at + 12 : at + 12 + size])
        entries = dict(messages(entry) for entry in messages(features))
        found.append({name.decode(): messages(messages(value)[0])[0] for name, value in entries.items()})
        at += size + 16
    return found


def test_the_real_pairs(tmp_path: Path, original_data: Path) -> None:
    folder = original_data / "capsules-testdata/norb"
    if not folder.is_dir():
        pytest.skip(f"CAPSDIST_DATA={original_data} holds no capsules-testdata/norb")
    pairs = {split: records(folder / f"{split}duo.tfrecords") for split in ("train", "test")}
    table = {}
    for split, held in pairs.items():
        images = np.stack([np.frombuffer(one["image_raw"], np.uint8).reshape(2, 96, 96) for one in held])
        labels = np.array([one["label"][0] for one in held], np.int32)
        info = np.array([list(one["meta"]) for one in held], np.int32)
        table[split] = write_split(tmp_path, split, images, labels, info)
    splits = load_smallnorb(tmp_path, table)
    assert {split: len(samples) for split, (samples, _) in splits.items()} == {"train": 6, "test": 6}
    for split, (samples, factors) in splits.items():
        found = samples.read(0, 6)
        assert [bytes(image.tobytes()) for image in found["image"]] == [
            one["image_raw"] for one in pairs[split]
        ]
        toys = {4, 6, 7, 8, 9} if split == "train" else {0, 1, 2, 3, 5}
        assert set(factors["instance"].tolist()) <= toys
        for image in found["image"].astype(float):  # two cameras, a few pixels apart, see one toy
            assert 0.5 < np.corrcoef(image.reshape(2, -1))[0, 1] < 1
