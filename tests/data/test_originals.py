"""Original files: made in the exact format, damaged in every way, fetched from a real web server."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cifar_batches import batch_bytes, md5
from original_files import idx_bytes

from capsdist.data.sets import originals
from capsdist.data.sets.cifar import ARCHIVE, load_cifar, unpickle_batch
from capsdist.data.sets.idx import FILES, load_idx_set, parse_idx
from capsdist.data.sets.originals import Original, content, download
from capsdist.errors import DataError


def write_idx_set(
    folder: Path,
    *,
    zipped: bool = True,
    seed: int = 0,
    sides: tuple[int, int] = (6, 5),
    numbers: tuple[int, int] = (31, 7),
) -> tuple[dict[str, str], dict]:
    """Write the four files with random content; return their checksums and what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    checksums, held = {}, {}
    for (split, names), num in zip(FILES.items(), numbers, strict=True):
        images = rng.integers(0, 256, (num, *sides), dtype=np.uint8)
        arrays = (images, rng.integers(0, 10, num, dtype=np.uint8))
        held[split] = arrays
        for name, array in zip(names, arrays, strict=True):
            data = idx_bytes(array)
            checksums[name] = hashlib.sha256(data).hexdigest()
            path = folder / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(data) if zipped else data)
    return checksums, held


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_an_idx_set_is_read(tmp_path, zipped, place):
    checksums, held = write_idx_set(tmp_path / place, zipped=zipped)
    for split, (images, labels) in load_idx_set(tmp_path, checksums).items():
        assert np.array_equal(images[:, 0], held[split][0])
        assert np.array_equal(labels, held[split][1])
        assert (images.dtype, images.ndim, labels.dtype) == (np.uint8, 4, np.int64)


def test_gzip_headers_do_not_matter(tmp_path):
    checksums, _ = write_idx_set(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), mtime=1))
    load_idx_set(tmp_path, checksums)


def test_missing_original(tmp_path):
    checksums, _ = write_idx_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    message = (
        f"{tmp_path}: holds neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz; give the folder"
    )
    with pytest.raises(DataError, match=message):
        load_idx_set(tmp_path, checksums)


def test_other_content_than_the_original(tmp_path):
    checksums, _ = write_idx_set(tmp_path)
    write_idx_set(tmp_path, seed=1)
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte\.gz: sha256 of its content is \w+, the original has"
    ):
        load_idx_set(tmp_path, checksums)


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: data[:40] + b"\0\0\0" + data[43:]])
def test_damaged_gzip(tmp_path, damage):
    checksums, _ = write_idx_set(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        DataError, match=r"train-labels-idx1-ubyte\.gz: cannot be read \(.+\); get the file again"
    ):
        load_idx_set(tmp_path, checksums)


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that Python's own allocations take while `run` refuses a bomb."""
    tracemalloc.start()
    with pytest.raises(DataError, match=f"has more than {originals.MAX_BYTES:,} bytes; get the original"):
        run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Lower the limit, so that bombs are small."""
    monkeypatch.setattr(originals, "MAX_BYTES", 1_000_000)
    return 1_000_000


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_is_not_unpacked_beyond_the_limit(zipped: bool, limit: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    zeros = bytes(50 * limit)
    path.write_bytes(gzip.compress(zeros) if zipped else zeros)
    assert peak_bytes(lambda: content(path)) < 5 * limit


@pytest.mark.parametrize("kind", ["wanted", "other", "header"])
def test_an_archive_is_not_unpacked_beyond_the_limit(kind: str, limit: int, tmp_path: Path) -> None:
    archive = tmp_path / ARCHIVE
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("test_batch" if kind == "wanted" else "other")
        if kind == "header":
            member.pax_headers = {"comment": "x" * 50 * limit}
        else:
            member.size = 50 * limit
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    files = {"test": (Original("test_batch", "0", "md5"),)}
    assert peak_bytes(lambda: load_cifar(archive, files)) < 5 * limit


def test_a_download_ends_at_the_limit(limit: int, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served/file").write_bytes(bytes(3 * limit))
    url = (tmp_path / "served/file").as_uri().replace("file:///", "file://localhost/")
    assert peak_bytes(lambda: download([url], tmp_path / "o/file", content, manual="")) < 5 * limit
    assert not list((tmp_path / "o").iterdir())


def test_labels_that_do_not_match(tmp_path):
    checksums, _ = write_idx_set(tmp_path)
    data = idx_bytes(np.zeros(3, np.uint8))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(data)
    checksums["t10k-labels-idx1-ubyte"] = hashlib.sha256(data).hexdigest()
    with pytest.raises(DataError, match=r"labels \(3,\) do not match images \(7, 6, 5\)"):
        load_idx_set(tmp_path, checksums)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x: starts with b'', not an idx file of uint8; get the original"),
        (b"GIF89a", "not an idx file of uint8"),
        (b"\0\0\x0d\1" + b"\0\0\0\1" + b"\0\0\0\0", "not an idx file of uint8"),
        (b"\0\0\x08\3\0\0\0\1", r"x: has 8 bytes, its header says \(\)"),
        (
            idx_bytes(np.zeros((2, 3), np.uint8))[:-1],
            r"x: has 17 bytes, its header says \(2, 3\); get the original",
        ),
        (idx_bytes(np.zeros(4, np.uint8)) + b"\0", r"x: has 13 bytes, its header says \(4,\)"),
    ],
)
def test_broken_idx(data, message):
    with pytest.raises(DataError, match=message):
        parse_idx(data, "x")


# ---- CIFAR-10


@pytest.fixture
def cifar(tmp_path):
    """The folder of three small batches, and the table of files that describes them."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        (folder / name).write_bytes(batch_bytes(3 + number, number))
    originals = {path.name: Original(path.name, md5(path.read_bytes()), "md5") for path in folder.iterdir()}
    return folder, {
        "train": (originals["data_batch_1"], originals["data_batch_2"]),
        "test": (originals["test_batch"],),
    }


def in_folder(folder: Path) -> Path:
    return folder


def above_folder(folder: Path) -> Path:
    return folder.parent


def in_archive(folder: Path) -> Path:
    archive = folder.parent / ARCHIVE
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


def above_archive(folder: Path) -> Path:
    archive = in_archive(folder)
    (folder.parent / "deeper").mkdir()
    return archive.rename(folder.parent / "deeper" / ARCHIVE).parent


@pytest.mark.parametrize("source", [in_folder, above_folder, in_archive, above_archive])
def test_cifar_is_read_from_folder_and_archive(cifar, source):
    folder, files = cifar
    splits = load_cifar(source(folder), files)
    images, labels = splits["train"]
    raw = [pickle.loads((folder / f"data_batch_{n}").read_bytes(), encoding="bytes") for n in (1, 2)]
    assert np.array_equal(images.reshape(7, 3072), np.concatenate([batch[b"data"] for batch in raw]))
    assert labels.tolist() == raw[0][b"labels"] + raw[1][b"labels"]
    assert images[0, 1, 2, 3] == raw[0][b"data"][0, 1024 + 2 * 32 + 3]  # channel, row, column
    assert splits["test"][0].shape == (5, 3, 32, 32)
    assert labels.dtype == np.int64


def test_missing_batch(cifar):
    folder, files = cifar
    (folder / "data_batch_2").unlink()
    with pytest.raises(
        DataError, match="cifar-10-batches-py: holds no data_batch_2; give the folder of all batches"
    ):
        load_cifar(folder, files)


def test_wrong_md5(cifar):
    folder, files = cifar
    (folder / "data_batch_2").write_bytes(batch_bytes(3, 9))
    with pytest.raises(DataError, match="data_batch_2: md5 of its content is"):
        load_cifar(folder, files)


def test_truncated_archive(cifar):
    folder, files = cifar
    archive = in_archive(folder)
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(
        DataError, match=r"cifar-10-python\.tar\.gz: cannot be read \(.+\); give the folder or the tar"
    ):
        load_cifar(archive, files)


@pytest.mark.parametrize("name", ["no", "no.tar.gz"])
def test_source_that_is_not_there(cifar, tmp_path, name):
    with pytest.raises(
        DataError, match=f"{name}: cannot be read .No such file or directory.; give the folder"
    ):
        load_cifar(tmp_path / name, cifar[1])


class _Touches:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_no_code_of_a_pickle_runs(tmp_path):
    evil = pickle.dumps({b"data": _Touches(tmp_path / "ran"), b"labels": []}, protocol=2)
    with pytest.raises(
        DataError, match=r"batch: is not a CIFAR-10 batch \(it asks for .*\); get the original"
    ):
        unpickle_batch(evil, "batch")
    assert not (tmp_path / "ran").exists()
    pickle.loads(evil)  # the mutant, an ordinary unpickler, runs it
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        batch_bytes(3, 0)[:-20],
        pickle.dumps([1, 2]),
        pickle.dumps({b"labels": [1]}),
        batch_bytes(3, 0, labels=[1, 2]),
        batch_bytes(3, 0, data=np.zeros((3, 100), np.uint8)),
        batch_bytes(3, 0, data=np.zeros((3, 3072), np.int8)),
    ],
    ids=["empty", "text", "truncated", "a list", "no data", "too few labels", "wrong width", "wrong dtype"],
)
def test_broken_batches(data):
    with pytest.raises(DataError, match="here: is not a CIFAR-10 batch"):
        unpickle_batch(data, "here")


def test_archives_are_streams_of_bytes_only(tmp_path):
    """A member that points outside is never extracted, only read."""
    archive = tmp_path / ARCHIVE
    data = batch_bytes(2, 0)
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("../../test_batch")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    splits = load_cifar(archive, {"test": (Original("test_batch", md5(data), "md5"),)})
    assert splits["test"][1].shape == (2,)
    assert not (tmp_path.parent.parent / "test_batch").exists()
