"""Samples for validation: each class has its share, what belongs together stays together, nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from test_originals import write_idx_set

from capsdist.data import Split, read_index
from capsdist.data.format import samples as kinds
from capsdist.data.format.samples import ArraySamples, GeneratedSamples, Samples, SelectedSamples
from capsdist.data.sets import mnist
from capsdist.data.sets.affnist_train import AFFNIST_TRAIN, placed
from capsdist.data.sets.holdout import Holdout, divided, held_out
from capsdist.data.sets.mnist import MNIST
from capsdist.data.sets.pack import pack_command, pack_dataset
from capsdist.data.sets.smallnorb import SMALLNORB, SMALLNORB_AZIMUTH
from capsdist.data.sets.spec import DATASETS, SPLITS, TRAIN_TEST, DatasetSpec, find_dataset
from capsdist.errors import DataError


def samples(num: int, classes: int = 3, seed: int = 0, **fields: np.ndarray) -> ArraySamples:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (num, 1, 2, 3), dtype=np.uint8)
    return ArraySamples(**{"image": image, "label": rng.integers(0, classes, num), **fields})


def labels_of(found: Samples, name: str = "label") -> np.ndarray:
    return found.read(0, len(found))[name]


@pytest.mark.parametrize("num", [31, 200, 1003])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.7])
def test_each_class_has_its_share_and_every_sample_is_on_one_side(num: int, share: float) -> None:
    given = samples(num)
    splits = divided(given, Holdout(share=share, seed=num))
    part, validation = splits["train_part"], splits["validation"]
    whole, chosen = np.bincount(labels_of(given)), np.bincount(labels_of(validation), minlength=3)
    assert np.abs(chosen - np.maximum(share * whole, 1)).max() <= 0.5
    assert (chosen + np.bincount(labels_of(part), minlength=3)).tolist() == whole.tolist()
    ids = held_out(given, Holdout(share=share, seed=num))
    read = given.read(0, num)
    assert np.array_equal(validation.read(0, len(ids))["image"], read["image"][ids])
    others = np.delete(np.arange(num), ids)
    assert np.array_equal(part.read(0, len(others))["image"], read["image"][others])


def test_the_seed_decides_which() -> None:
    given = samples(300)
    drawn = [held_out(given, Holdout(share=0.2, seed=seed)).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [drawn[0][0], drawn[0][-1], len(drawn[0])] != [0, 59, 60]  # the mutant: the first ones


def test_a_small_class_has_one_for_validation() -> None:
    given = samples(204, label=np.repeat([0, 1, 2], [199, 3, 2]))
    assert np.bincount(given.read(0, 204)["label"][held_out(given, Holdout(0.1))]).tolist() == [20, 1]


def test_each_combination_of_several_labels_has_its_share() -> None:
    rows = np.array([[0, 1], [1, 2], [2, -1]], np.int64)
    labels = rows[np.repeat([0, 1, 2], [50, 30, 20])]
    given = ArraySamples(image=np.zeros((100, 1, 2, 2), np.uint8), labels=labels)
    chosen = labels[held_out(given, Holdout(0.1))]
    assert [(chosen == row).all(1).sum() for row in rows] == [5, 3, 2]


@pytest.mark.parametrize("seed", range(5))
def test_what_belongs_together_stays_on_one_side(seed: int) -> None:
    """Groups of several sizes, some with samples of several classes."""
    rng = np.random.default_rng(seed)
    group, view = rng.integers(0, 40, 500), rng.integers(0, 2, 500)
    given = samples(500, seed=seed, group=group, view=view)
    splits = divided(given, Holdout(0.2, seed=seed), ("group", "view"))
    sides = [set(zip(labels_of(s, "group"), labels_of(s, "view"), strict=True)) for s in splits.values()]
    assert sides[0] & sides[1] == set()
    assert len(sides[0] | sides[1]) == len(set(zip(group, view, strict=True)))
    assert 0.1 < len(splits["validation"]) / 500 < 0.3
    alone = divided(given, Holdout(0.2, seed=seed))  # the mutant
    mixed = [set(labels_of(each, "group")) for each in alone.values()]
    assert mixed[0] & mixed[1]


def test_all_positions_of_a_digit_are_on_one_side() -> None:
    given = placed(ArraySamples(**samples_of_mnist(30)))
    splits = divided(given, Holdout(0.1), AFFNIST_TRAIN.together)
    numbers = {name: set(labels_of(each, "digit")) for name, each in splits.items()}
    assert numbers["train_part"] & numbers["validation"] == set()
    assert len(splits["validation"]) == 169 * len(numbers["validation"])


def samples_of_mnist(num: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {"image": rng.integers(0, 256, (num, 1, 28, 28), dtype=np.uint8), "label": np.arange(num) % 3}


def test_a_toy_of_smallnorb_is_on_one_side_with_all_its_views() -> None:
    toy = np.repeat(np.arange(25), 12)
    given = samples(300, label=toy % 5, instance=toy // 5)
    chosen = held_out(given, Holdout(0.1), SMALLNORB.together)
    read = given.read(0, 300)
    toys = set(zip(read["label"][chosen], read["instance"][chosen], strict=True))
    assert (len(toys), len(chosen)) == (5, 5 * 12)  # one of each class
    assert sorted(label for label, _ in toys) == [0, 1, 2, 3, 4]


def test_the_first_samples() -> None:
    assert held_out(samples(50), Holdout(first=7)).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("holdout", "together", "message"),
    [
        (Holdout(), (), "validation=0 and validation-first=0: give one of them, a share of each class or a"),
        (Holdout(0.1, 5), (), "validation=0.1 and validation-first=5: give one of them"),
        (Holdout(1.0), (), "validation=1: give a share above 0 and below 1"),
        (Holdout(-0.1), (), "validation=-0.1: give a share above 0"),
        (Holdout(float("nan")), (), "validation=nan: give a share above 0"),
        (Holdout(first=40), (), "validation-first=40: train has 40 images; give 1 to 39"),
        (Holdout(first=-1), (), "validation-first=-1: train has 40 images"),
        (
            Holdout(first=9),
            ("group",),
            "validation-first=9: images of the same group belong together; ",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(holdout: Holdout, together, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}") as caught:
        held_out(samples(40, group=np.arange(40)), holdout, together)
    assert "\n" not in str(caught.value)


def test_a_share_that_takes_nothing_is_refused() -> None:
    pair = samples(2, label=np.array([0, 1]))
    with pytest.raises(DataError, match=r"^validation=0.1: takes 0 of 2 images of train; give another"):
        held_out(pair, Holdout(0.1))


def test_a_selection_reads_a_bounded_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held = samples(1000).read(0, 1000)
    read: list[int] = []

    def make(ids: np.ndarray) -> Mapping[str, np.ndarray]:
        read.append(len(ids))
        return {name: array[ids] for name, array in held.items()}

    given = GeneratedSamples(1000, samples(1).fields, make)
    ids = np.sort(np.random.default_rng(4).permutation(1000)[:101])
    monkeypatch.setattr(kinds, "_SPAN_BYTES", 14 * 37)  # 37 samples of 14 bytes
    selected = SelectedSamples(given, ids)
    for start, stop in ((0, 101), (3, 3), (0, 1), (17, 88)):
        for name, array in selected.read(start, stop).items():
            assert np.array_equal(array, held[name][ids[start:stop]])
    assert max(read) <= 37


# ---- the command


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """31 and 7 images in MNIST's format."""
    checksums, _ = write_idx_set(tmp_path / "originals", zipped=False)
    monkeypatch.setattr(mnist, "_SHA256", checksums)
    return tmp_path / "originals"


def packed(root: Path, name: str = "mnist") -> dict[str, int]:
    """Number of images by split."""
    return {path.name: read_index(path).num_samples for path in sorted((root / name).iterdir())}


def command(spec: DatasetSpec, source: Path, root: Path, *words: str) -> int:
    return pack_command(spec, "pack", ["--source", str(source), "--root", str(root), *words])


def test_train_stays_whole_and_its_parts_are_made_beside_it(source: Path, tmp_path: Path) -> None:
    assert command(MNIST, source, tmp_path) == 0
    before = read_index(tmp_path / "mnist/train").digest
    assert command(MNIST, source, tmp_path, "--validation", "0.2", "--seed", "3") == 0
    found = packed(tmp_path)
    assert (found["train"], found["test"]) == (31, 7)
    assert found["train_part"] + found["validation"] == 31
    assert read_index(tmp_path / "mnist/train").digest == before
    images = {name: Split(tmp_path / "mnist" / name).gather(np.arange(num))[0] for name, num in found.items()}
    together = np.concatenate([images["train_part"], images["validation"]]).reshape(31, -1)
    assert np.array_equal(np.unique(together, axis=0), np.unique(images["train"].reshape(31, -1), axis=0))


def test_another_share_replaces_the_parts(source: Path, tmp_path: Path) -> None:
    for first in (4, 9):
        assert command(MNIST, source, tmp_path, "--validation-first", str(first)) == 0
        found = packed(tmp_path)
        assert (found["validation"], found["train_part"]) == (first, 31 - first)


def test_without_the_whole_no_image_is_stored_twice(source: Path, tmp_path: Path) -> None:
    assert command(MNIST, source, tmp_path, "--validation-first", "10", "--no-whole") == 0
    assert packed(tmp_path) == {"test": 7, "train_part": 21, "validation": 10}
    whole = mnist.load_mnist(source, source, "pack")["train"].read(0, 31)["image"]
    assert np.array_equal(Split(tmp_path / "mnist/validation").gather(np.arange(10))[0], whole[:10])


def test_the_whole_cannot_be_left_out_alone(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^whole=False: leaves out train, .*; give --validation, too$"):
        command(MNIST, source, tmp_path, "--no-whole")


def test_a_set_of_ones_own_that_gives_arrays(tmp_path: Path) -> None:
    held = samples(40).read(0, 40)
    pair = (held["image"], held["label"])
    arrays = {"train": pair, "test": pair}
    own = DatasetSpec("own", "a set", ("a", "b", "c"), lambda source, folder, command: arrays)
    pack_dataset(own, "pack", source=None, root=str(tmp_path), holdout=Holdout(0.25))
    found = packed(tmp_path, "own")
    assert found == {"test": 40, "train": 40, "train_part": 30, "validation": 10}


def test_sets_with_splits_of_their_own_are_not_divided(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^smallnorb_azimuth has the splits train, validation, test of its own; "
    ):
        pack_dataset(SMALLNORB_AZIMUTH, "pack", source=None, root=str(tmp_path), holdout=Holdout(0.1))
    with pytest.raises(SystemExit):
        pack_command(SMALLNORB_AZIMUTH, "pack", ["--validation", "0.1"])


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in ("folder", "webdataset")])
def test_the_remedies_of_a_run_know_which_sets_can_be_divided(name: str) -> None:
    """`launch.preflight.packing_remedy` reads the table, because `--check` imports no data set."""
    spec = find_dataset(name)
    assert spec.splits == SPLITS.get(name, TRAIN_TEST)
    assert spec.can_be_divided == (spec.splits == TRAIN_TEST)
