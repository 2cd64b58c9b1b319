"""Foreign webdataset tar files packed in our formats: every image once, decoded or as it is."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from image_trees import stored, tar_bytes
from PIL import Image

from capsdist.cli.main import main
from capsdist.data import Split, read_index, verify_split
from capsdist.data.sets.webdataset import WebdatasetOptions, pack_webdataset
from capsdist.errors import DataError
from encoded_images import CLASSES, Images


def write_tars(root: Path, images: Images, names: tuple[str, ...], *, kind: str = "cls") -> list[bytes]:
    """Tar files `names` of the images, dealt out in turn; return the image files."""
    root.mkdir(parents=True, exist_ok=True)
    for part, name in enumerate(names):
        members = {}
        for number in range(part, len(images.files), len(names)):
            label = images.values(number)["label"]
            content = str(label) if kind == "cls" else json.dumps({"kind": CLASSES[label]})
            members[f"{number:04d}.{images.suffixes[number]}"] = images.files[number]
            members[f"{number:04d}.{kind}"] = content.encode()
        (root / f"{name}.tar").write_bytes(tar_bytes(members))
    return images.files


def options(tmp_path: Path, **values: object) -> WebdatasetOptions:
    return WebdatasetOptions(**{"name": "mine", "root": str(tmp_path / "data"), "size": (9, 7), **values})


def test_images_keep_their_bytes_and_labels_in_the_encoded_format(tmp_path):
    images = Images(60)
    files = write_tars(tmp_path / "tars", images, ("a", "b", "c"), kind="json")
    assert pack_webdataset(str(tmp_path / "tars"), options(tmp_path, encoded=True, label_key="kind")) == []
    found = {split: stored(tmp_path / "data/mine" / split) for split in ("train", "validation", "test")}
    assert {split: len(held) for split, held in found.items()} == {"train": 50, "validation": 5, "test": 5}
    together = [pair for held in found.values() for pair in held]
    assert sorted(together) == sorted((file, CLASSES[number % 5]) for number, file in enumerate(files))
    labels = [label for _, label in found["train"]]
    assert labels != sorted(labels)


@pytest.mark.parametrize("grey", [False, True])
def test_pixels_are_those_of_the_decoder(tmp_path, grey):
    images = Images(20)
    write_tars(tmp_path / "tars", images, ("train-0", "train-1"))
    pack_webdataset(str(tmp_path / "tars"), options(tmp_path, validation=0, test=0, grey=grey))
    index = verify_split(tmp_path / "data/mine/train")
    channels = 1 if grey else 3
    assert (index.image_shape, index.classes) == ((channels, 9, 7), ("0", "1", "2", "3", "4"))
    pixels, labels = Split(tmp_path / "data/mine/train").gather(np.arange(20))
    expected = images.decoded(np.arange(20), (channels, 9, 7))
    pairs = sorted((label, image.tobytes()) for label, image in zip(labels.tolist(), pixels, strict=True))
    assert pairs == sorted((number % 5, image.tobytes()) for number, image in enumerate(expected))


def test_names_of_tar_files_give_the_splits(tmp_path):
    images = Images(40, suffixes=("jpg",))
    write_tars(tmp_path / "tars", images, ("train-00", "train-01", "train-02", "val"))
    pack_webdataset(str(tmp_path / "tars"), options(tmp_path, encoded=True, test=0))
    assert sorted(path.name for path in (tmp_path / "data/mine").iterdir()) == ["train", "validation"]
    validation = {file for number, file in enumerate(images.files) if number % 4 == 3}
    assert {file for file, _ in stored(tmp_path / "data/mine/validation")} == validation
    assert len(stored(tmp_path / "data/mine/train")) == 30


@pytest.mark.parametrize("encoded", [False, True])
def test_what_cannot_be_read_is_left_out_and_fatal_with_strict(tmp_path, encoded):
    images = Images(20, suffixes=("jpg",), side=30)
    images.files[4] = images.files[4][:-120]  # its header can be read
    images.files[5] = b"no image"
    write_tars(tmp_path / "tars", images, ("one",))
    chosen = {"encoded": encoded, "validation": 0, "test": 0}
    left_out = pack_webdataset(str(tmp_path / "tars"), options(tmp_path, **chosen))
    assert len(left_out) == 2
    assert "'0005' is passed over: an unknown format" in left_out[0]
    assert "is no image (" in left_out[1]
    assert verify_split(tmp_path / "data/mine/train", decode_size=8 if encoded else 0).num_samples == 18
    with pytest.raises(DataError, match=r"'0005' is passed over.*; or pack without --strict$"):
        pack_webdataset(str(tmp_path / "tars"), options(tmp_path, strict=True, **chosen))


def test_packing_again_gives_the_same_set_and_writes_no_shard(tmp_path):
    write_tars(tmp_path / "tars", Images(20), ("a", "b"))
    pack_webdataset(str(tmp_path / "tars"), options(tmp_path))
    folder = tmp_path / "data/mine/train"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    digest = read_index(folder).digest
    pack_webdataset(str(tmp_path / "tars"), options(tmp_path))
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert read_index(folder).digest == digest


def test_the_command_packs_and_its_errors_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tars(tmp_path / "tars", Images(20), ("a", "b"))
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    words = ["pack", "webdataset", "tars", "--name", "mine", "--size", "8", "--classes", "names.txt"]
    assert main(words) == 0
    assert read_index(tmp_path / "data/mine/train").classes == CLASSES
    for change, message in (
        (["--size", "0"], "error: size=(0,): give one or two numbers of pixels"),
        (["--validation", "0.6", "--test", "0.4"], "error: validation=0.6 and test=0.4: give shares"),
        (["--label-key", "x", "--classes", "missing.txt"], "error: missing.txt: cannot be read"),
    ):
        capsys.readouterr()
        assert main([*words, *change]) == 1
        error = capsys.readouterr().err
        assert error.startswith(message)
        assert error.count("\n") == 1


def real_tars(original_data: Path, folder: str) -> Path:
    if not list((original_data / folder).glob("*.tar")):
        pytest.skip(f"CAPSDIST_DATA={original_data} holds no {folder}/*.tar")
    return original_data / folder


def test_real_tiny_imagenet_with_its_splits(tmp_path, original_data):
    """The first 600 images of two of its tar files; some are grey."""
    source = real_tars(original_data, "tiny-imagenet")
    held = {}
    (tmp_path / "tars").mkdir()
    for name in ("train-00", "val"):
        with tarfile.open(source / f"{name}.tar") as tar:
            held[name] = {member.name: tar.extractfile(member).read() for member in islice(tar, 1200)}
        (tmp_path / f"tars/{name}.tar").write_bytes(tar_bytes(held[name]))
    pack_webdataset(str(tmp_path / "tars"), options(tmp_path, encoded=True, test=0))
    assert any(
        Image.open(io.BytesIO(file)).mode == "L" for file, _ in stored(tmp_path / "data/mine/validation")
    )
    for split, name in (("train", "train-00"), ("validation", "val")):
        assert verify_split(tmp_path / "data/mine" / split).image_shape == (3, 64, 64)
        keys = [member.removesuffix(".cls") for member in held[name] if member.endswith(".cls")]
        expected = [(held[name][f"{key}.jpg"], held[name][f"{key}.cls"].decode()) for key in keys]
        assert sorted(stored(tmp_path / "data/mine" / split)) == sorted(expected)
        assert len(expected) == 600


def test_real_photographs_of_full_size_become_pixels(tmp_path, original_data):
    source = real_tars(original_data, "imagenet-sample")
    chosen = options(tmp_path, size=(64,), validation=0, test=0)
    assert pack_webdataset(str(source), chosen) == []
    index = verify_split(tmp_path / "data/mine/train")
    assert (index.image_shape, index.num_samples) == ((3, 64, 64), 100)
