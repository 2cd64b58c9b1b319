"""MultiMNIST is packed from the files of MNIST, and makes the images of the authors' own test data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_data_prep import either
from test_originals import write_idx_set
from tfrecords import examples

from capsdist.cli.main import main
from capsdist.data import check_split, read_index
from capsdist.data.format.source import open_split
from capsdist.data.recipes.overlay import Frames
from capsdist.data.recipes.source import Recipes
from capsdist.data.sets import mnist, multimnist
from capsdist.data.sets.mnist import load_mnist
from capsdist.data.sets.multimnist import MULTIMNIST


@pytest.fixture
def originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The four files with 31 + 7 small images in `tmp_path`/source, and what they hold."""
    checksums, held = write_idx_set(tmp_path / "source")
    monkeypatch.setattr(mnist, "_SHA256", checksums)
    monkeypatch.setattr(multimnist, "_NUM_VALIDATION", 11)
    return held


def packed(tmp_path: Path, *options: str) -> int:
    words = ["pack", "multimnist", "--source", str(tmp_path / "source"), "--root", str(tmp_path / "data")]
    return main([*words, "--partners", "2", *options])


def test_the_splits_are_those_of_the_authors(tmp_path, originals, capsys):
    assert packed(tmp_path) == 0
    printed = capsys.readouterr().out
    assert printed.count("packed: ") == 6
    for split, part, first, last in (
        ("train", "train", 0, 31), ("train_part", "train", 11, 31), ("validation", "train", 0, 11),
        ("test", "test", 0, 7),
    ):  # fmt: skip
        index = check_split(tmp_path / "data/multimnist" / split, image_shape=(1, 14, 13), num_classes=10)
        assert (index.num_samples, index.classes) == (2 * (last - first), tuple("0123456789"))
        assert f"{split}: {index.num_samples} images of 1 x 14 x 13 in recipes over" in printed
        source = open_split(tmp_path / "data/multimnist" / split)
        assert isinstance(source, Recipes)
        found = source.fields(np.arange(index.num_samples), "digits", "labels", "shifts")
        digits = found["digits"]
        assert (digits.min() >= first, digits.max() < last) == (True, True)
        assert sorted(digits[:, 0]) == sorted(list(range(first, last)) * 2)
        assert np.array_equal(found["labels"], originals[part][1][digits])
        assert np.abs(found["shifts"]).max() == 4
    assert set(MULTIMNIST.splits) == {"train", "train_part", "validation", "test"}


def test_the_digits_are_stored_in_their_order(tmp_path, originals):
    assert packed(tmp_path) == 0
    for split, digits in (("train", "digits_train"), ("test", "digits_test")):
        base = open_split(tmp_path / "data/multimnist" / digits)
        num = base.index.num_samples
        out = {"image": np.empty((num, 1, 6, 5), np.uint8)}
        base.gather_into(np.arange(num), out)
        assert np.array_equal(out["image"][:, 0], originals[split][0])


def test_packing_again_says_so_and_repairs(tmp_path, originals, capsys):
    assert packed(tmp_path) == 0
    capsys.readouterr()
    assert packed(tmp_path) == 0
    assert capsys.readouterr().out.count("already packed: ") == 6
    set_folder = tmp_path / "data/multimnist"
    (set_folder / "test/index.json").write_text("{")
    (set_folder / "digits_test/shard-00000.tar").unlink()
    assert packed(tmp_path) == 0
    assert check_split(set_folder / "test").num_samples == 14
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out.count("intact: ") == 6


def test_another_shift_makes_another_set(tmp_path, originals):
    assert packed(tmp_path) == 0
    first = open_split(tmp_path / "data/multimnist/train").index.digest
    assert packed(tmp_path, "--shift", "5", "--name", "wide") == 0
    wide = open_split(tmp_path / "data/wide/train")
    assert isinstance(wide, Recipes)
    assert wide.index.digest != first
    assert np.abs(wide.fields(np.arange(62), "shifts")["shifts"]).max() == 5
    assert packed(tmp_path, "--shift", "5") == 0
    assert open_split(tmp_path / "data/multimnist/train").index.digest == wide.index.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shift", "9"], "shift=9: give 0 to 5"),
        (["--shift", "-1"], "shift=-1: give 0 to 5"),
        (["--partners", "0"], "partners=0: give 1 to "),
        (["--partners", "40"], "partners=40, but only "),
    ],
)
def test_options_out_of_range(tmp_path, originals, capsys, options, message):
    assert packed(tmp_path, *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


# ---- real digits, and the authors' own test data


def test_the_real_set(tmp_path, original_data, capsys):
    source = either(original_data, "MNIST/raw", "mnist")
    assert main(["pack", "multimnist", "--source", str(source), "--root", str(tmp_path)]) == 0
    sizes = {}
    for split in MULTIMNIST.splits:
        reader = open_split(tmp_path / "multimnist" / split)
        assert isinstance(reader, Recipes)
        sizes[split] = reader.index.num_samples // 1_000_000
        ids = np.random.default_rng(0).integers(0, reader.index.num_samples, 500)
        found = reader.fields(ids, "image", "labels")
        assert found["image"].shape == (500, 1, 36, 36)
        assert (found["labels"][:, 0] != found["labels"][:, 1]).all()
        total = reader.separate(ids).astype(int).sum(axis=1)
        assert np.array_equal(found["image"], np.minimum(total, 255))
        assert (total > 255).any()
    assert sizes == {"train": 60, "train_part": 50, "validation": 10, "test": 10}
    assert read_index(tmp_path / "multimnist/digits_train").num_samples == 60_000


def find_digit(
    raw: np.ndarray, images: np.ndarray, candidates: np.ndarray
) -> list[tuple[int, tuple[int, int]]]:
    """The `candidates` among `images` [N, 28, 28], and their shifts, that are seen in `raw` [36, 36].

    Every shift of up to 8 pixels is tried; a digit may be cut by the edge.
    """
    found = []
    middle = int(np.argmax(raw.sum(axis=1, dtype=int)))  # a row full of ink tells most digits apart
    for down in range(-8, 9):
        for right in range(-8, 9):
            top, left = 4 + down, 4 + right
            rows, columns = slice(max(-top, 0), min(36 - top, 28)), slice(max(-left, 0), min(36 - left, 28))
            if not 0 <= middle - top < 28:
                continue
            line = raw[middle, columns.start + left : columns.stop + left]
            fitting = candidates[(images[candidates, middle - top, columns] == line).all(axis=1)]
            for digit in fitting.tolist():
                canvas = np.zeros((36, 36), np.uint8)
                seen = images[digit, rows, columns]
                canvas[rows.start + top : rows.stop + top, columns.start + left : columns.stop + left] = seen
                if np.array_equal(canvas, raw):
                    found.append((digit, (down, right)))
    return found


@pytest.mark.parametrize(("split", "num"), [("train", 6), ("test", 4)])
def test_the_authors_test_data_are_recipes(original_data, split, num):
    """Their images are pairs of MNIST's images, each shifted by up to 6 pixels, which this overlay makes too.

    Their names say 4 pixels, but shifts of 5 and 6 occur. What is beyond the edge is cut off.
    """
    folder = either(original_data, "capsules-testdata/mnist")
    source = either(original_data, "MNIST/raw", "mnist")
    arrays = load_mnist(source, source, "pack")[split].read(0, {"train": 60_000, "test": 10_000}[split])
    images, labels = arrays["image"][:, 0], arrays["label"]
    records = [record for path in sorted(folder.glob(f"multi{split}_*")) for record in examples(path)]
    assert len(records) == num
    lower_shifts, uppers, reached = set(), set(), 0
    for record in records:
        assert (record["height"], record["width"], record["depth"]) == (36, 36, 1)
        digits, shifts, raws = [], [], []
        for each in "12":
            content, label = record[f"image_raw_{each}"], record[f"label_{each}"]
            assert isinstance(content, bytes)
            raws.append(np.frombuffer(content, np.uint8).reshape(36, 36))
            matches = find_digit(raws[-1], images, np.flatnonzero(labels == label))
            assert matches, f"no digit {label} of MNIST is the image {each}"
            digits.append(matches[0][0])
            shifts.append(matches[0][1])
        assert record["label_1"] != record["label_2"]
        reached = max(reached, *(abs(pixels) for shift in shifts for pixels in shift))
        lower_shifts.add((digits[0], shifts[0]))
        uppers.add(digits[1])
        frames = Frames(2, (1, 28, 28), pad=4, shift=6)
        frames.digits[:, 0] = images[digits]
        out = np.empty((1, 1, 36, 36), np.uint8)
        frames.overlay_into(np.array([[0, 1]]), np.array([shifts]), out)
        merged = record["merged_raw"]
        assert isinstance(merged, bytes)
        assert out.tobytes() == merged
        for place in range(2):
            shown = frames.shifted(np.array([place]), np.array(shifts[place])[None])
            assert np.array_equal(shown[0, 0], raws[place])
    assert len(lower_shifts) == 1  # one base digit, and one shift of it in all of its pairs
    assert len(uppers) == num  # no partner twice
    assert 4 < reached <= 6
