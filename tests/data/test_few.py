"""The few images of a smoke run: of the packed set, else of original files, else made up."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import numpy as np
import pytest
from test_originals import write_idx_set

from capsdist.data import write_split
from capsdist.data.format.source import open_split
from capsdist.data.format.split import Split
from capsdist.data.sets import mnist
from capsdist.data.sets.few import pack_few
from capsdist.data.sets.made import MADE
from capsdist.data.sets.spec import DATASETS, SPLITS, TRAIN_TEST, find_dataset
from capsdist.errors import DataError

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
PAIRS = ("multimnist", "multimnist_shift6")


@pytest.fixture(autouse=True)
def no_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of original files, and nothing is downloaded."""
    monkeypatch.delenv("CAPSDIST_DATA", raising=False)
    monkeypatch.setattr("capsdist.data.sets.few._FOLDERS", {"mnist": ("MNIST",)})

    def refuse(*arguments: object, **options: object) -> None:
        pytest.fail(f"a smoke run asks for {arguments[0]}")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize("name", [name for name in [*MADE, *PAIRS] if name != "digits"])
def test_without_a_packed_set_they_are_made_up_and_it_is_said(tmp_path: Path, name: str) -> None:
    splits = SPLITS.get(name, TRAIN_TEST if name in DATASETS else ("train", "validation", "test"))
    words = pack_few(name, splits, str(tmp_path / "data"), str(tmp_path / "few"))
    assert words.startswith(f"{name}: ")
    assert "made-up images in files of the original format (" in words
    found = {split: open_split(tmp_path / "few" / name / split).index for split in splits}
    assert len({index.digest for index in found.values()}) == len(splits)
    for split, index in found.items():
        assert index.licence == "made up for a smoke run"
        assert index.num_samples >= (48 if split == "train" else 21)
        if name in DATASETS and (classes := find_dataset(name).classes):
            assert index.classes == classes


@pytest.mark.parametrize("name", SHAPES)
def test_of_a_packed_set_they_are_the_first_images(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng()
    for split, num in (("train", 130), ("test", 7)):
        images = rng.integers(0, 256, (num, *SHAPES[name]), dtype=np.uint8)
        labels = rng.integers(0, 10, num)
        classes = [str(number) for number in range(10)]
        write_split(tmp_path / "data" / name / split, images, labels, classes=classes)
    words = pack_few(name, TRAIN_TEST, str(tmp_path / "data"), str(tmp_path / "few"))
    assert words == f"{name}: the first images of {tmp_path / 'data' / name}"
    for split, num in (("train", 96), ("test", 7)):
        few, whole = (Split(tmp_path / root / name / split) for root in ("few", "data"))
        assert few.index.num_samples == num
        for found, expected in zip(few.gather(np.arange(num)), whole.gather(np.arange(num)), strict=True):
            assert (found == expected).all()


@pytest.mark.parametrize("place", ["below CAPSDIST_DATA", "downloaded"])
@pytest.mark.parametrize("name", ["mnist", "affnist_train", "multimnist"])
def test_of_original_files_they_are_the_first_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    folder = tmp_path / "originals/MNIST"
    if place == "downloaded":
        folder = tmp_path / "data/originals/mnist"
    else:
        monkeypatch.setenv("CAPSDIST_DATA", str(folder.parent))
    checksums, held = write_idx_set(folder, sides=(28, 28), numbers=(130, 50))
    monkeypatch.setattr(mnist, "_SHA256", checksums)
    words = pack_few(name, TRAIN_TEST, str(tmp_path / "data"), str(tmp_path / "few"))
    assert words.endswith(f"the first images of the original files in {folder}")
    split = Split(tmp_path / "few" / name / ("digits_train" if name == "multimnist" else "train"))
    ids = np.arange(96)
    images, labels = split.gather(ids)
    assert (labels == held["train"][1][ids]).all()
    if name == "affnist_train":  # at a place of each
        rows, columns = (split.fields(ids, field)[field] for field in ("row", "column"))
        images = np.stack([
            image[:, row : row + 28, column : column + 28]
            for image, row, column in zip(images, rows, columns, strict=True)
        ])  # fmt: skip
    assert (images[:, 0] == held["train"][0][ids]).all()


def test_damaged_originals_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = write_idx_set(tmp_path / "MNIST", sides=(28, 28), numbers=(5, 5))[0]["train-images-idx3-ubyte"]
    monkeypatch.setenv("CAPSDIST_DATA", str(tmp_path))
    words = pack_few("mnist", TRAIN_TEST, str(tmp_path / "data"), str(tmp_path / "few"))
    assert "made-up images" in words
    assert f"{tmp_path}/MNIST/train-images-idx3-ubyte.gz: sha256 of its content is {found}" in words


def test_a_set_without_files_of_a_known_format_is_refused(tmp_path: Path) -> None:
    message = r"data/imagenet/train: there is no such data set; .*; and there is no made-up form of it"
    with pytest.raises(DataError, match=message):
        pack_few("imagenet", TRAIN_TEST, str(tmp_path / "data"), str(tmp_path / "few"))
