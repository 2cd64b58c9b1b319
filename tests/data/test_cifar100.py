"""CIFAR-100: fine and coarse labels of batches in the exact format, from a folder and from the archive."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from cifar_batches import batch_bytes, md5, python2

from capsdist.data.sets.cifar import CIFAR_100, unpickle_batch
from capsdist.data.sets.cifar100 import CIFAR100, COARSE_CLASSES, load_cifar100
from capsdist.data.sets.originals import Original
from capsdist.errors import DataError


def hundred_bytes(num: int, seed: int, **changes) -> tuple[bytes, dict]:
    """A batch of CIFAR-100, and what it holds."""
    rng = np.random.default_rng(seed)
    held = {
        b"filenames": [b"x.png"] * num,
        b"batch_label": b"training batch 1 of 1",
        b"fine_labels": rng.integers(0, 100, num).tolist(),
        b"coarse_labels": rng.integers(0, 20, num).tolist(),
        b"data": rng.integers(0, 256, (num, 3072), dtype=np.uint8),
    }
    held |= {key.encode(): value for key, value in changes.items()}
    return b"\x80\x02" + python2(held) + b".", held


@pytest.fixture
def batches(tmp_path: Path) -> tuple[Path, dict, dict]:
    """The folder of the two batches, the table of files, and what they hold."""
    folder = tmp_path / CIFAR_100.folder
    folder.mkdir()
    table, held = {}, {}
    for seed, (split, num) in enumerate((("train", 9), ("test", 4))):
        data, held[split] = hundred_bytes(num, seed)
        (folder / split).write_bytes(data)
        table[split] = (Original(split, md5(data), "md5"),)
    (folder / "meta").write_bytes(b"not read")
    return folder, table, held


@pytest.mark.parametrize("place", ["folder", "above", "archive", "beside archive"])
def test_both_labels_are_read(batches: tuple[Path, dict, dict], place: str, tmp_path: Path) -> None:
    folder, table, held = batches
    source = folder if place == "folder" else folder.parent
    if "archive" in place:
        (tmp_path / "packed").mkdir()
        source = tmp_path / "packed" / CIFAR_100.archive
        with tarfile.open(source, "w:gz") as tar:
            tar.add(folder, folder.name)
        source = source if place == "archive" else source.parent
    splits = load_cifar100(source, table)
    for split, batch in held.items():
        found = splits[split].read(0, len(splits[split]))
        assert np.array_equal(found["image"].reshape(-1, 3072), batch[b"data"])
        assert found["label"].tolist() == batch[b"fine_labels"]
        assert found["coarse_label"].tolist() == batch[b"coarse_labels"]
        assert found["coarse_label"].dtype == np.int64


def test_a_wrong_checksum(batches: tuple[Path, dict, dict]) -> None:
    with pytest.raises(DataError, match=r"train: md5 of its content is .*, the original has 16019d7e"):
        load_cifar100(batches[0])


def test_a_missing_batch(batches: tuple[Path, dict, dict]) -> None:
    folder, table, _ = batches
    (folder / "test").unlink()
    with pytest.raises(DataError, match="cifar-100-python: holds no test; give the folder of all batches"):
        load_cifar100(folder, table)


def test_a_coarse_label_out_of_range(tmp_path: Path) -> None:
    data, _ = hundred_bytes(3, 0, coarse_labels=[1, 20, 2])
    (tmp_path / "test").write_bytes(data)
    table = {"test": (Original("test", md5(data), "md5"),)}
    with pytest.raises(DataError, match=r"a coarse label of test is outside 0\.\.19; get the original"):
        load_cifar100(tmp_path, table)


@pytest.mark.parametrize(
    "data",
    [batch_bytes(3, 0), hundred_bytes(3, 0, coarse_labels=[1, 2])[0], hundred_bytes(3, 0)[0][:-30]],
    ids=["CIFAR-10", "too few", "cut"],
)
def test_broken_batches(data: bytes) -> None:
    with pytest.raises(DataError, match="here: is not a CIFAR-100 batch"):
        unpickle_batch(data, "here", CIFAR_100)


def test_classes() -> None:
    """In alphabetical order, as the original numbers them."""
    assert len(CIFAR100.classes) == 100
    assert len(COARSE_CLASSES) == 20
    assert list(CIFAR100.classes) == sorted(CIFAR100.classes)
    assert list(COARSE_CLASSES) == sorted(COARSE_CLASSES)
