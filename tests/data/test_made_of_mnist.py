"""affnist_train and affnist_like: what is made of MNIST is what it says, however it is read."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from test_data_prep import either
from test_originals import write_idx_set

from capsdist.data.format.samples import ArraySamples
from capsdist.data.sets import mnist
from capsdist.data.sets.affnist_like import AFFNIST_LIKE, transform, transformations, transformed
from capsdist.data.sets.affnist_train import AFFNIST_TRAIN, NUM_POSITIONS, placed


def digits(num: int, seed: int = 0, side: int = 28) -> ArraySamples:
    """Noise where MNIST has ink: in the middle 20x20 pixels."""
    rng = np.random.default_rng(seed)
    images = np.zeros((num, 1, side, side), np.uint8)
    images[:, :, 4:24, 4:24] = rng.integers(0, 256, (num, 1, 20, 20))
    images[:, :, 4, 4] = images[:, :, 23, 23] = 255
    return ArraySamples(image=images, label=rng.integers(0, 10, num))


# ---- every position


@pytest.mark.parametrize("num", [1, 5, 169, 170])
def test_every_digit_is_at_every_position_once(num: int) -> None:
    base = digits(num)
    held = base.read(0, num)
    samples = placed(base)
    assert len(samples) == num * NUM_POSITIONS
    found = samples.read(0, len(samples))
    seen = set(zip(*(found[name].tolist() for name in ("digit", "row", "column")), strict=True))
    assert seen == {(d, r, c) for d in range(num) for r in range(13) for c in range(13)}
    assert np.array_equal(found["label"], held["label"][found["digit"]])
    for place in np.random.default_rng(1).integers(0, len(samples), 200):
        wanted = np.zeros((40, 40), np.uint8)
        row, column = found["row"][place], found["column"][place]
        wanted[row : row + 28, column : column + 28] = held["image"][found["digit"][place], 0]
        assert np.array_equal(found["image"][place, 0], wanted)


def test_neighbours_are_of_different_digits_and_positions() -> None:
    found = placed(digits(50)).read(0, 1000)
    assert (found["digit"][1:] != found["digit"][:-1]).all()
    place = 13 * found["row"] + found["column"]
    assert (place[1:] != place[:-1]).mean() > 0.9


def test_the_whole_set_is_never_in_memory() -> None:
    """10,140,000 images, 16 billion bytes: a part takes what its own images take, and some."""
    samples = placed(ArraySamples(image=np.ones((60_000, 1, 28, 28), np.uint8), label=np.arange(60_000) % 10))
    assert len(samples) == 10_140_000
    tracemalloc.start()
    found = samples.read(10_139_000, 10_140_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found["digit"][-1], found["image"][-1].sum()) == (59_999, 784)
    assert peak < 20 * found["image"].nbytes


# ---- affine transformations


@pytest.mark.parametrize("make", [placed, transformed])
def test_samples_do_not_depend_on_what_is_read_with_them(make) -> None:
    samples = make(digits(7))
    whole = samples.read(0, 200)
    for start, stop in ((0, 1), (1, 2), (3, 50), (199, 200), (60, 60)):
        part = samples.read(start, stop)
        for name, array in whole.items():
            assert np.array_equal(part[name], array[start:stop])
    again = make(digits(7)).read(0, 200)
    assert all(np.array_equal(again[name], array) for name, array in whole.items())


def test_ranges_of_the_transformations() -> None:
    """A matrix is scaling times shearing times rotation: taken apart, every factor fills its range."""
    matrices, places = transformations(np.arange(20_000))
    # scaling @ shearing leaves the second row of the rotation as it is, but for its length.
    horizontal = np.hypot(matrices[:, 1, 0], matrices[:, 1, 1])
    degrees = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 1, 1]))
    unit = (
        np.stack([matrices[:, 1, 1], -matrices[:, 1, 0]], axis=-1) / horizontal[:, None]
    )  # rotation's first
    vertical = (matrices[:, 0] * unit).sum(axis=-1)
    shear = (matrices[:, 0] * matrices[:, 1]).sum(axis=-1) / horizontal / vertical
    for values, low, high in (
        (degrees, -20, 20), (shear, -0.2, 0.2), (vertical, 0.8, 1.2), (horizontal, 0.8, 1.2),
        (places[:, 0], 0, 1), (places[:, 1], 0, 1),
    ):  # fmt: skip
        margin = 0.001 * (high - low)
        assert low <= values.min() < low + margin
        assert high - margin < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 5 * margin
    factors = np.corrcoef([degrees, shear, vertical, horizontal, *places.T])
    assert np.abs(factors - np.eye(6)).max() < 0.03


def test_without_a_transformation_a_digit_is_only_moved() -> None:
    digit = digits(1).read(0, 1)["image"][0, 0]
    for row in range(21):
        place = np.array([row / 20, (20 - row) / 20])  # ink of 20 pixels has 20 pixels of room
        wanted = np.zeros((40, 40), np.uint8)
        wanted[row : row + 20, 20 - row : 40 - row] = digit[4:24, 4:24]
        assert np.array_equal(transform(digit, np.eye(2), place), wanted)


@pytest.mark.parametrize("place", [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.3, 0.7)])
def test_no_ink_is_lost(place: tuple[float, float]) -> None:
    """The sum of the pixels grows like the area, also where the digit touches the edge."""
    digit = digits(1, seed=3).read(0, 1)["image"][0, 0]
    for matrix in transformations(np.arange(100))[0]:
        moved = transform(digit, matrix, np.array(place))
        ratio = moved.sum(dtype=float) / (digit.sum(dtype=float) * np.linalg.det(matrix))
        assert abs(ratio - 1) < 0.02
        edges = moved[[0, -1]].any(axis=1), moved[:, [0, -1]].any(axis=0)
        assert all(edge.tolist() == [False, False] for edge in edges) or place != (0.3, 0.7)


def test_versions_of_a_digit_differ() -> None:
    samples = transformed(digits(3))
    assert len(samples) == 96
    found = samples.read(0, 96)
    assert found["digit"].tolist() == [0, 1, 2] * 32
    assert len(np.unique(found["image"].reshape(96, -1), axis=0)) == 96


# ---- the sets


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [(AFFNIST_TRAIN, {"train": 31 * 169, "test": 7 * 169}), (AFFNIST_LIKE, {"test": 7 * 32})],
)
def test_the_sets_are_made_of_mnist_as_it_is_given(spec, sizes, tmp_path: Path, monkeypatch) -> None:
    checksums, held = write_idx_set(tmp_path / "package/data", zipped=False)
    monkeypatch.setattr(mnist, "_SHA256", checksums)
    splits = spec.load(tmp_path, tmp_path / "originals", "pack")
    assert {split: len(samples) for split, samples in splits.items()} == sizes
    assert tuple(splits) == spec.splits
    found = splits["test"].read(0, 14)
    assert found["label"].tolist() == held["test"][1].tolist() * 2
    assert found["image"].shape == (14, 1, 40, 40)


def test_what_is_generated_says_so() -> None:
    assert "GENERATED" in AFFNIST_LIKE.title
    assert "not affNIST" in AFFNIST_LIKE.title


def test_real_digits_keep_their_ink(original_data: Path) -> None:
    source = either(original_data, "MNIST/raw", "mnist")
    base = mnist.load_mnist(source, source, "pack")["test"]
    samples = transformed(base)
    assert len(samples) == 320_000
    found, ink = samples.read(159_500, 160_500), base.read(9500, 10_000)["image"]
    ink = np.concatenate([ink, base.read(0, 500)["image"]]).sum(axis=(1, 2, 3), dtype=float)
    area = np.linalg.det(transformations(np.arange(159_500, 160_500))[0])
    ratio = found["image"].sum(axis=(1, 2, 3), dtype=float) / ink / area
    assert np.abs(ratio - 1).max() < 0.05
