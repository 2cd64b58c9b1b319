"""ImageNet-1k from files in its original layouts: archives of archives, sorted folders, Kaggle's copy."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_trees import (
    NAMES,
    WNIDS,
    WORDS,
    devkit,
    imagenet,
    imagenet_truth,
    stored,
    tar_bytes,
    write_folder,
)

from capsdist.data import verify_split
from capsdist.data.encoded.split import EncodedSplit
from capsdist.data.encoded.write import write_encoded
from capsdist.data.sets.imagenet import ImageNetFacts, load_imagenet
from capsdist.data.sets.members import Members
from capsdist.data.sets.originals import Original
from capsdist.data.sets.pack import pack_command
from capsdist.data.sets.spec import find_dataset
from capsdist.data.sets.synsets import class_names
from capsdist.errors import DataError

TRAIN, VAL = imagenet()
TRUTH = dict(zip(VAL, imagenet_truth(len(VAL)), strict=True))
NAME_OF = dict(zip(sorted(WNIDS), NAMES, strict=True))
KIT = devkit(len(VAL))


def facts(**changes: object) -> ImageNetFacts:
    kit = Original("ILSVRC2012_devkit_t12.tar.gz", hashlib.md5(KIT).hexdigest(), "md5", packed=True)
    counts = {"train": len(TRAIN), "test": len(VAL)}
    return ImageNetFacts(**{"sizes": {}, "devkit": kit, "num_classes": 4, "counts": counts, **changes})


def class_archives() -> dict[str, bytes]:
    """The archive of each class, whose members have no folders."""
    return {
        f"{wnid}.tar": tar_bytes({name.split("/")[2]: held for name, held in TRAIN.items() if wnid in name})
        for wnid in WNIDS
    }


def original(root: Path) -> Path:
    files = {
        "ILSVRC2012_img_train.tar": tar_bytes(class_archives()),
        "ILSVRC2012_img_val.tar": tar_bytes(VAL),
        "ILSVRC2012_devkit_t12.tar.gz": KIT,
    }
    return write_folder(root, files)


def sorted_folders(root: Path) -> Path:
    val = {f"val/{TRUTH[name]}/{name}": content for name, content in VAL.items()}
    words = "".join(f"{wnid} {text}\n" for wnid, text in WORDS.items()).encode()
    return write_folder(root, {**TRAIN, **val, "LOC_synset_mapping.txt": words})


def kaggle(root: Path) -> Path:
    inside = "ILSVRC/Data/CLS-LOC"
    files = {f"{inside}/{name}": content for name, content in TRAIN.items()}
    files |= {f"{inside}/val/{name}": content for name, content in VAL.items()}
    files[f"{inside}/test/ILSVRC2012_test_00000001.JPEG"] = b"not read"
    lines = [
        f"{name.removesuffix('.JPEG')},{wnid} 85 1 499 272 {wnid} 0 0 9 9 \n" for name, wnid in TRUTH.items()
    ]
    files["LOC_val_solution.csv"] = "".join(["ImageId,PredictionString\n", *reversed(lines)]).encode()
    files["LOC_synset_mapping.txt"] = "".join(f"{wnid} {text}\n" for wnid, text in WORDS.items()).encode()
    return write_folder(root, files)


def half_unpacked(root: Path) -> Path:
    """The training archive is unpacked to those of the classes, the devkit is there."""
    files = {f"train/{name}": content for name, content in class_archives().items()}
    files |= {"ILSVRC2012_img_val.tar": tar_bytes(VAL), "ILSVRC2012_devkit_t12.tar.gz": KIT}
    return write_folder(root, files)


def write(folder: Path, members: Members):
    return write_encoded(folder, members, classes=members.classes, shard_bytes=20_000)


@pytest.mark.parametrize("layout", [original, sorted_folders, kaggle, half_unpacked])
def test_every_layout_gives_every_image_with_its_label(tmp_path, layout):
    loaded = load_imagenet(layout(tmp_path / "source"), facts())
    assert write(tmp_path / "train", loaded["train"]).classes == NAMES
    write(tmp_path / "test", loaded["test"])
    found = stored(tmp_path / "train")
    assert sorted(found) == sorted((held, NAME_OF[name.split("/")[1]]) for name, held in TRAIN.items())
    assert sorted(stored(tmp_path / "test")) == sorted(
        (held, NAME_OF[TRUTH[name]]) for name, held in VAL.items()
    )
    verify_split(tmp_path / "train", decode_size=16)


def test_files_of_other_formats_than_their_names_say_are_read(tmp_path):
    index = write(tmp_path / "train", load_imagenet(original(tmp_path / "source"), facts())["train"])
    names = [name for shard in index.shards for name in _names(tmp_path / "train" / shard.name)]
    assert sorted(names) == ["cls"] * 16 + ["jpg"] * 15 + ["png"]
    images = np.zeros((16, 3, 32, 32), np.uint8)
    EncodedSplit(tmp_path / "train", size=(32, 32)).gather_into(np.arange(16), {"image": images})
    assert all(len(np.unique(image)) > 10 for image in images)


def _names(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return [name.rpartition(".")[2] for name in tar.getnames()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sizes": {"ILSVRC2012_img_val.tar": 5}},
            r"ILSVRC2012_img_val.tar: has [\d,]+ bytes, the original has 5",
        ),
        (
            {"num_classes": 1000},
            r"has 4 classes in train instead of 1,000; give the original, or pack a part",
        ),
        ({"counts": {"train": 16, "test": 9}}, r"has 8 images of the classes in train for test instead of 9"),
        ({"devkit": ImageNetFacts().devkit}, r"devkit_t12.tar.gz: md5 of the packed file is .* has fa75699e"),
    ],
)
def test_what_is_not_the_original_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load_imagenet(original(tmp_path), facts(**changes))


def test_an_archive_that_was_cut_is_refused(tmp_path):
    source = original(tmp_path)
    path = source / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        DataError, match=r"ILSVRC2012_img_train.tar: cannot be read \(.*\); get the file again"
    ):
        load_imagenet(source, facts())


def test_validation_images_without_labels_say_what_is_missing(tmp_path):
    source = original(tmp_path)
    (source / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(DataError, match="has validation images without labels; put ILSVRC2012_devkit_t12"):
        load_imagenet(source, facts())


def test_without_the_originals_the_command_says_how_to_get_them(tmp_path):
    with pytest.raises(
        DataError, match=r"register at https://image-net.org.*then run: here --source FOLDER$"
    ):
        pack_command(find_dataset("imagenet"), "here", ["--root", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_class_names_are_short_and_unique():
    words = {
        "n1": "crane",
        "n2": "crane",
        "n3": "maillot",
        "n4": "maillot, tank suit",
        "n5": "tench, Tinca tinca",
    }
    names = class_names([*words, "n6"], words)
    assert names == ("crane (n1)", "crane (n2)", "maillot", "maillot, tank suit", "tench", "n6")


def test_real_photographs_in_the_original_layout(tmp_path, original_data):
    path = original_data / "imagenet-sample/imagenet-100.tar"
    if not path.is_file():
        pytest.skip(f"CAPSDIST_DATA={original_data} holds no imagenet-sample")
    with tarfile.open(path) as tar:
        held = {member.name: tar.extractfile(member).read() for member in tar if member.name.endswith("jpg")}
    classes = {f"{name[:9]}.tar": tar_bytes({f"{name[:9]}_1.JPEG": photo}) for name, photo in held.items()}
    val = {f"val/{name[:9]}/{name[:9]}.JPEG": photo for name, photo in held.items()}
    source = write_folder(tmp_path / "source", {"ILSVRC2012_img_train.tar": tar_bytes(classes), **val})
    loaded = load_imagenet(source, facts(num_classes=100, counts={"train": 100, "test": 100}))
    expected = sorted((photo, name[:9]) for name, photo in held.items())
    for split, members in loaded.items():
        index = write_encoded(tmp_path / split, members, classes=members.classes)
        assert index.stored_shape == (3, None, None)
        assert sorted(stored(tmp_path / split)) == expected
        verify_split(tmp_path / split, decode_size=64)
