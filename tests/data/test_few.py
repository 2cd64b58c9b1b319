"""The few images of a smoke run: of the packed set where there is one, else through files of its format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capsdist.data import write_split
from capsdist.data.format.source import open_split
from capsdist.data.format.split import Split
from capsdist.data.sets.few import pack_few

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "multimnist": (1, 36, 36)}


@pytest.mark.parametrize("name", SHAPES)
def test_without_a_packed_set_they_are_made_up_and_it_is_said(tmp_path: Path, name: str) -> None:
    words = pack_few(name, str(tmp_path / "data"), str(tmp_path / "few"))
    assert words.startswith(f"{name}: ")
    assert "made-up images in the original format" in words
    train, test = (open_split(tmp_path / "few" / name / split).index for split in ("train", "test"))
    assert (train.image_shape, train.num_classes) == (SHAPES[name], 10)
    assert train.num_samples >= 96
    assert test.num_samples >= 40
    assert train.digest != test.digest


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_of_a_packed_set_they_are_the_first_images(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng()
    for split, num in (("train", 130), ("test", 7)):
        images = rng.integers(0, 256, (num, *SHAPES[name]), dtype=np.uint8)
        labels = rng.integers(0, 10, num)
        classes = [str(number) for number in range(10)]
        write_split(tmp_path / "data" / name / split, images, labels, classes=classes)
    words = pack_few(name, str(tmp_path / "data"), str(tmp_path / "few"))
    assert words == f"{name}: the first images of {tmp_path / 'data' / name}"
    for split, num in (("train", 96), ("test", 7)):
        few, whole = (Split(tmp_path / root / name / split) for root in ("few", "data"))
        assert few.index.num_samples == num
        for found, expected in zip(few.gather(np.arange(num)), whole.gather(np.arange(num)), strict=True):
            assert (found == expected).all()
