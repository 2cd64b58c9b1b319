"""Tiny-ImageNet, Imagenette and Imagewoof from files in their original layouts: every image as it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from image_trees import (
    NAMES,
    WNIDS,
    class_folders,
    stored,
    tar_bytes,
    tiny_imagenet,
    write_folder,
    write_zip,
)

from capsdist.data import verify_split
from capsdist.data.encoded.write import write_encoded
from capsdist.data.sets.holdout import Holdout, divided_members
from capsdist.data.sets.imagenette import IMAGENETTE, IMAGEWOOF, load_imagenette
from capsdist.data.sets.members import Members
from capsdist.data.sets.originals import Original
from capsdist.data.sets.pack import pack, pack_command
from capsdist.data.sets.spec import find_dataset
from capsdist.data.sets.tiny_imagenet import TINY_IMAGENET, load_tiny_imagenet
from capsdist.errors import DataError

NETTE = {"n01440764": "tench", "n02102040": "English springer"}
COUNTS = {"train": 6, "test": 4}


def write(root: Path, loaded: dict[str, Members], name: str = "set") -> Path:
    pack(root, name, (), lambda: loaded, splits=tuple(loaded))
    return root / name


def test_tiny_imagenet_is_the_same_set_from_folder_and_zip(tmp_path):
    files = tiny_imagenet()
    folder = write_folder(tmp_path, files)
    archive = write_zip(tmp_path / "tiny-imagenet-200.zip", files)
    published = Original(archive.name, hashlib.md5(archive.read_bytes()).hexdigest(), "md5", packed=True)
    digests = []
    for number, source in enumerate((folder, folder / "tiny-imagenet-200", archive)):
        loaded = load_tiny_imagenet(source, tmp_path, archive=published, counts=(3, 2))
        place = write(tmp_path / f"data{number}", loaded)
        digests.append([verify_split(place / split).digest for split in ("train", "test")])
    assert digests[0] == digests[1] == digests[2]
    name = dict(zip(sorted(WNIDS), NAMES, strict=True))
    train = {
        (content, name[path.split("/")[2]])
        for path, content in files.items()
        if "_" in path and "/train/" in path and path.endswith("JPEG")
    }
    for number in range(3):
        found = stored(tmp_path / f"data{number}/set/train")
        assert set(found) == train
        assert len(found) == 12
        assert [label for _, label in found] != sorted(label for _, label in found)  # classes are mixed
    test = {(files[f"tiny-imagenet-200/val/images/val_{n}.JPEG"], name[WNIDS[n % 4]]) for n in range(8)}
    assert set(stored(tmp_path / "data2/set/test")) == test
    index = verify_split(tmp_path / "data0/set/train")
    assert (index.classes, index.image_shape) == (NAMES, (3, 64, 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("a missing image", r"class n01443537 has 2 images for train instead of 3; get the original"),
        ("no wnids", r"has no wnids.txt; give the folder tiny-imagenet-200"),
        ("a wrong line", r"line 2 of val/val_annotations.txt has 'n00000000', which is no line of wnids.txt"),
    ],
)
def test_a_tiny_imagenet_that_is_not_whole_is_refused(tmp_path, change, message):
    files = tiny_imagenet()
    if change == "a missing image":
        del files["tiny-imagenet-200/train/n01443537/images/n01443537_2.JPEG"]
    elif change == "no wnids":
        del files["tiny-imagenet-200/wnids.txt"]
    else:
        lines = files["tiny-imagenet-200/val/val_annotations.txt"]
        files["tiny-imagenet-200/val/val_annotations.txt"] = lines.replace(b"n01443537", b"n00000000", 1)
    with pytest.raises(DataError, match=message):
        load_tiny_imagenet(write_folder(tmp_path, files), tmp_path, counts=(3, 2))


def test_a_zip_of_another_checksum_is_refused(tmp_path):
    archive = write_zip(tmp_path / "tiny-imagenet-200.zip", tiny_imagenet())
    with pytest.raises(DataError, match=r"md5 of the packed file is .*, the original has 90528d7c"):
        pack_command(TINY_IMAGENET, "pack", ["--source", str(archive), "--root", str(tmp_path / "data")])


def test_a_damaged_image_names_its_file_and_nothing_is_published(tmp_path):
    files = tiny_imagenet()
    name = "tiny-imagenet-200/train/n01443537/images/n01443537_2.JPEG"
    files[name] = files[name][:-200]
    loaded = load_tiny_imagenet(write_folder(tmp_path, files), tmp_path, counts=(3, 2))
    with pytest.raises(DataError, match=r"n01443537_2.JPEG: is no image \(.*; get the original again$"):
        write(tmp_path / "data", loaded)
    assert not (tmp_path / "data/set/train/index.json").exists()


def test_imagenette_is_the_same_set_from_folder_and_archive(tmp_path):
    files = class_folders("imagenette2-320", {"train": 3, "val": 2}, tuple(NETTE))
    folder = write_folder(tmp_path, files)
    archive = tmp_path / "imagenette2-320.tgz"
    archive.write_bytes(tar_bytes(files, "w:gz"))
    with pytest.raises(DataError, match="md5 of the packed file is"):
        load_imagenette(archive, tmp_path, NETTE, COUNTS)
    digests, held = [], []
    for number, source in enumerate((folder, archive)):
        place = write(
            tmp_path / f"data{number}", load_imagenette(source, tmp_path / "unpacked", NETTE, COUNTS, {})
        )
        held.append([set(stored(place / split)) for split in ("train", "test")])
        index = verify_split(place / "train", decode_size=32)
        assert index.classes == tuple(NETTE.values())
        digests.append(index.digest)
    assert digests[0] == digests[1]
    assert [len(split) for split in held[1]] == [6, 4]
    assert held[1][0] == {
        (content, NETTE[path.split("/")[2]]) for path, content in files.items() if "/train/" in path
    }
    assert list((tmp_path / "unpacked").iterdir()) == []


def test_imagenette_of_another_number_or_class_is_refused(tmp_path):
    files = class_folders("imagenette2", {"train": 3, "val": 2}, (*NETTE, "n09999999"))
    folder = write_folder(tmp_path, files)
    with pytest.raises(DataError, match="has the class n09999999, which this set does not have"):
        load_imagenette(folder, tmp_path, NETTE, COUNTS)
    with pytest.raises(DataError, match=r"has 9 images for train instead of 9,469; give the original folder"):
        load_imagenette(folder, tmp_path, {**NETTE, "n09999999": "x"}, {"train": 9469, "test": 3925})


def test_a_part_of_train_becomes_validation_and_no_image_is_in_both(tmp_path):
    files = class_folders("imagenette2", {"train": 10, "val": 2}, tuple(NETTE))
    loaded = load_imagenette(write_folder(tmp_path, files), tmp_path, NETTE, {"train": 20, "test": 4})
    parts = divided_members(loaded["train"], Holdout(0.2))
    place = write(tmp_path / "data", {**loaded, **parts})
    found = {split: stored(place / split) for split in ("train", "train_part", "validation", "test")}
    assert [len(split) for split in found.values()] == [20, 16, 4, 4]
    assert sorted(found["train"]) == sorted(found["train_part"] + found["validation"])
    assert [sum(label == name for _, label in found["validation"]) for name in NETTE.values()] == [2, 2]


def test_packing_that_was_cut_off_goes_on(tmp_path):
    files = class_folders("imagenette2", {"train": 10, "val": 2}, tuple(NETTE))
    folder = write_folder(tmp_path, files)
    counts = {"train": 20, "test": 4}

    def loaded():
        return load_imagenette(folder, tmp_path, NETTE, counts)

    train = loaded()["train"]
    options = {"classes": train.classes, "shard_bytes": 8000}
    whole = write_encoded(tmp_path / "whole", train, **options)
    assert len(whole.shards) > 3

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > 8:
            raise Stop

    with pytest.raises(Stop):
        write_encoded(tmp_path / "again", train, **options, progress=stop)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").glob("shard-*")}
    assert times
    again = write_encoded(tmp_path / "again", loaded()["train"], **options)
    assert again == whole
    assert (
        times.items()
        <= {path: path.stat().st_mtime_ns for path in (tmp_path / "again").glob("shard-*")}.items()
    )


@pytest.mark.parametrize("spec", [IMAGENETTE, IMAGEWOOF], ids=lambda spec: spec.name)
def test_classes_are_ten_in_the_order_of_their_wnids(spec):
    names = spec.load.args[1]
    assert len(names) == 10
    assert list(names) == sorted(names)
    assert find_dataset(spec.name) is spec
    assert sum(spec.load.args[2].values()) == {"imagenette": 13394, "imagewoof": 12954}[spec.name]
    assert np.unique(list(names.values())).size == 10


@pytest.mark.parametrize("kind", ["tgz", "tar", "zip"])
@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_archive_is_one_line(tmp_path, kind, seed):
    files = class_folders("imagenette2", {"train": 3, "val": 2}, tuple(NETTE))
    archive = tmp_path / f"set.{kind}"
    if kind == "zip":
        write_zip(archive, files)
    else:
        archive.write_bytes(tar_bytes(files, "w:gz" if kind == "tgz" else "w"))
    draws = np.random.default_rng(seed)
    content = bytearray(archive.read_bytes()[: None if seed % 2 else int(draws.integers(1, 9000))])
    for place in draws.integers(0, len(content), 40):
        content[place] = int(draws.integers(256))
    archive.write_bytes(content)
    lines = ""
    try:
        write(tmp_path / "data", load_imagenette(archive, tmp_path, NETTE, COUNTS, {}))
    except DataError as error:
        lines = str(error)
    else:  # no header was hit, and JPEG has no checksums
        assert {len(stored(tmp_path / f"data/set/{split}")) for split in COUNTS} == {6, 4}
    assert "\n" not in lines
