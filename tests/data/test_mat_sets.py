"""SVHN and affNIST: .mat files in the exact format, whole and damaged."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from original_files import affnist_bytes, mat_bytes, original, svhn_bytes, zip_bytes

from capsdist.data.sets.affnist import load_affnist
from capsdist.data.sets.mat import load_mat
from capsdist.data.sets.svhn import SVHN, load_svhn
from capsdist.errors import DataError

# ---- the format


@pytest.mark.parametrize("packed", [True, False])
def test_variables_are_read(packed: bool) -> None:
    rng = np.random.default_rng(0)
    made = {"a": rng.integers(0, 256, (3, 5, 2), dtype=np.uint8), "b": rng.random((4, 1))}
    data = mat_bytes(packed, **made)
    found = load_mat(io.BytesIO(data), ("b", "a"), "x.mat")
    assert found.keys() == {"a", "b"}
    for name, array in made.items():
        assert np.array_equal(found[name], array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"cannot be read as a \.mat file \(.+\)"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), r"cannot be read as a \.mat file \(.+\)"),
        (mat_bytes(a=np.zeros((9, 9)))[:-20], r"cannot be read as a \.mat file \(.+\)"),
        (mat_bytes(b=np.zeros((1, 1))), "has no variable a"),
    ],
    ids=["empty", "hdf5", "cut", "another variable"],
)
def test_other_files(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"^x\.mat: {message}; get the original$") as caught:
        load_mat(io.BytesIO(data), ("a",), "x.mat")
    assert "\n" not in str(caught.value)


# ---- SVHN


def write_svhn(
    folder: Path, splits: tuple[str, ...] = ("train", "test", "extra"), **changes
) -> tuple[dict, dict]:
    """The files of SVHN; return the table of files and what they hold."""
    table, held = {}, {}
    for seed, split in enumerate(splits):
        data, images, labels = svhn_bytes(7 + seed, seed, **changes)
        path = folder / f"{split}_32x32.mat"
        path.write_bytes(data)
        table[split], held[split] = original(path), (images, labels)
    return table, held


def test_svhn_is_read(tmp_path: Path) -> None:
    table, held = write_svhn(tmp_path)
    splits = load_svhn(tmp_path, table)
    assert splits.keys() == {"train", "test", "extra"}
    for split, (images, labels) in held.items():
        found = splits[split].read(0, len(splits[split]))
        assert np.array_equal(found["image"], images)
        assert np.array_equal(found["label"], labels)
        assert 0 in labels  # 10 in the file


def test_extra_may_be_missing(tmp_path: Path) -> None:
    table, _ = write_svhn(tmp_path)
    (tmp_path / "extra_32x32.mat").unlink()
    assert load_svhn(tmp_path, table).keys() == {"train", "test"}
    assert SVHN.splits_of(tmp_path) == ("train", "test")
    (tmp_path / "extra_32x32.mat").touch()
    assert SVHN.splits_of(tmp_path) == ("train", "test", "extra")
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(
        DataError, match=r"holds no test_32x32\.mat; give the folder of the original \.mat files"
    ):
        load_svhn(tmp_path, table)


def test_svhn_of_another_checksum(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    with pytest.raises(
        DataError, match=r"train_32x32\.mat: sha256 of its content is .*, the original has 435e"
    ):
        load_svhn(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": np.zeros((32, 32, 7), np.uint8)}, r"X has shape \(32, 32, 7\), not \(32, 32, 3, N\)"),
        ({"X": np.zeros((32, 3, 32, 7), np.uint8)}, r"X has shape \(32, 3, 32, 7\)"),
        ({"X": np.zeros((32, 32, 3, 7))}, r"field image is float64 .*, not uint8 \[7, 3, 32, 32\]"),
        ({"y": np.zeros((7, 1), np.uint8)}, r"label 0 of sample 0 is outside 1\.\.10"),
        ({"y": np.full((7, 1), 11, np.uint8)}, "label 11 of sample 0"),
        ({"y": np.ones((6, 1), np.uint8)}, r"field label is int64 \[6\], not int64 \[7\]"),
        ({"z": np.ones((6, 1), np.uint8)}, None),
    ],
)
def test_svhn_of_another_structure(tmp_path: Path, changes: dict, message: str | None) -> None:
    table, _ = write_svhn(tmp_path, ("train",), **changes)
    if message is None:
        assert len(load_svhn(tmp_path, table)["train"]) == 7
        return
    with pytest.raises(DataError, match=rf"train_32x32\.mat: {message}.*; get the original"):
        load_svhn(tmp_path, table)["train"].read(0, 1)


def test_svhn_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(mat_bytes(X=np.zeros((32, 32, 3, 2), np.uint8)))
    with pytest.raises(DataError, match="has no variable y; get the original"):
        load_svhn(tmp_path, {"train": original(path)})["train"].read(0, 1)


# ---- affNIST

SIZE = 3


def affnist_members(**changes) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """All 32 batches by their names; and the images and labels that they hold."""
    made = [affnist_bytes(SIZE, number, **(changes if number == 9 else {})) for number in range(1, 33)]
    files = {f"test_batches/{number}.mat": data for number, (data, _, _) in enumerate(made, 1)}
    return files, np.concatenate([images for _, images, _ in made]), np.concatenate([one[2] for one in made])


def as_archive(folder: Path, files: dict[str, bytes]) -> Path:
    (folder / "test_batches.zip").write_bytes(zip_bytes(files))
    return folder / "test_batches.zip"


def beside_archive(folder: Path, files: dict[str, bytes]) -> Path:
    return as_archive(folder, files).parent


def load(source: Path):
    archive = source / "test_batches.zip" if source.is_dir() else source
    return load_affnist(source, original(archive, packed=True), SIZE)


@pytest.mark.parametrize("lay_out", [as_archive, beside_archive])
def test_affnist_is_read_batch_by_batch(tmp_path: Path, lay_out: Callable) -> None:
    files, images, labels = affnist_members()
    samples = load(lay_out(tmp_path, files))
    assert len(samples) == 32 * SIZE
    for start, stop in ((0, 96), (0, 3), (2, 4), (94, 96), (50, 51)):
        found = samples.read(start, stop)
        assert np.array_equal(found["image"][:, 0], images[start:stop])  # batch 10 comes after 9, not after 1
        assert np.array_equal(found["label"], labels[start:stop])


def test_affnist_of_another_checksum(tmp_path: Path) -> None:
    source = as_archive(tmp_path, affnist_members()[0])
    with pytest.raises(
        DataError, match=r"test_batches\.zip: sha256 of the packed file is .*, the original has 83f8"
    ):
        load_affnist(source)


def test_affnist_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """Nothing of a file that is not the published one gets to scipy's parser."""
    source = as_archive(tmp_path, affnist_members()[0])
    samples = load(source)
    samples.read(0, 1)
    source.write_bytes(zip_bytes({"1.mat": b"something else"}))
    with pytest.raises(
        DataError, match=r"test_batches\.zip: sha256 of the packed file is .*; get the file again"
    ):
        samples.read(3, 4)


@pytest.mark.parametrize("name", ["", "no.zip"])
def test_affnist_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        DataError, match=r"zip: is not there; give test_batches\.zip of affNIST, or a folder that"
    ):
        load_affnist(tmp_path / name)


def test_affnist_without_a_batch(tmp_path: Path) -> None:
    files, _, _ = affnist_members()
    del files["test_batches/32.mat"]
    with pytest.raises(DataError, match=r"test_batches\.zip: holds no 32\.mat; get the original"):
        load(as_archive(tmp_path, files)).read(95, 96)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((1599, SIZE), np.uint8)}, r"image is uint8 \(1599, 3\) for 3 labels"),
        ({"image": np.zeros((1600, SIZE))}, r"image is float64 \(1600, 3\) for 3 labels"),
        ({"label_int": np.zeros((1, 2))}, r"image is uint8 \(1600, 3\) for 2 labels"),
        ({"label_int": np.full((1, SIZE), 10.0)}, "label_int has values outside 0..9"),
        ({"label_int": np.full((1, SIZE), 0.5)}, "label_int has values outside 0..9"),
    ],
)
def test_affnist_of_another_structure(tmp_path: Path, changes: dict, message: str) -> None:
    samples = load(as_archive(tmp_path, affnist_members(**changes)[0]))
    assert samples.read(0, 24)["label"].shape == (24,)
    with pytest.raises(DataError, match=rf"/9\.mat: is not a batch of affNIST \({message}\); get the orig"):
        samples.read(24, 25)


@pytest.mark.parametrize("held", [np.zeros((1, 1)), {"image": np.zeros((1, 1))}], ids=["number", "struct"])
def test_a_batch_that_lacks_fields(tmp_path: Path, held) -> None:
    files, _, _ = affnist_members()
    source = as_archive(tmp_path, files | {"test_batches/1.mat": mat_bytes(affNISTdata=held)})
    with pytest.raises(DataError, match=r"/1\.mat: is not a batch of affNIST \(.*\); get the original"):
        load(source).read(0, 1)


def test_a_batch_of_another_size(tmp_path: Path) -> None:
    source = as_archive(tmp_path, affnist_members()[0] | {"test_batches/2.mat": affnist_bytes(4, 0)[0]})
    with pytest.raises(DataError, match=r"/2\.mat: field image is uint8 \[4, 1, 40, 40\], not uint8 \[3, 1"):
        load(source).read(3, 4)
