"""ImageNet-1k: 1,281,167 + 50,000 JPEGs of 1,000 classes (ILSVRC 2012; Russakovsky et al. 2015).

Labels follow the order of the wnids, as torchvision's and Keras's do, not the numbers of the devkit. `test`
has the official validation images, because the labels of the test images were never published.

Image files stay as they are. One of them is a PNG under the name of a JPEG and 22 are CMYK; they are decoded
as all others (`capsdist.data.decoding`).
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from capsdist.data.sets.archives import tar_members
from capsdist.data.sets.mat import load_mat
from capsdist.data.sets.members import Members, members_of
from capsdist.data.sets.originals import Original, check_file
from capsdist.data.sets.spec import DatasetSpec
from capsdist.data.sets.synsets import class_names, words_in
from capsdist.data.sets.trees import Listing, Tree, add_folder, add_tar, readable
from capsdist.errors import DataError

__all__ = ["IMAGENET_FILES", "ImageNetFacts", "load_imagenet"]

_TRAIN, _VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_TRUTH, _SOLUTION = "ILSVRC2012_validation_ground_truth.txt", "LOC_val_solution.csv"
_DEVKIT = Original("ILSVRC2012_devkit_t12.tar.gz", "fa75699e90414af021442c21a62c3abf", "md5", packed=True)
_WORDS = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")
_NOT_READ = frozenset({"test", "Annotations", "ImageSets"})  # of Kaggle's copy


@dataclass(frozen=True)
class ImageNetFacts:
    """What the originals must be: sizes in bytes of the tar archives, devkit, classes and images by split."""

    sizes: Mapping[str, int] = field(default_factory=lambda: {_TRAIN: 147_897_477_120, _VAL: 6_744_924_160})
    devkit: Original = _DEVKIT
    num_classes: int = 1000
    counts: Mapping[str, int] = field(default_factory=lambda: {"train": 1_281_167, "test": 50_000})


def load_imagenet(source: Path, facts: ImageNetFacts | None = None) -> dict[str, Members]:
    """Return both splits from the folder `source`, which holds one of

    - ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz,
    - folders train/WNID and val/WNID with JPEGs, or train/WNID.tar in place of the former,
    - Kaggle's copy, whose folder val is flat and whose LOC_val_solution.csv has the labels,

    or a mixture. The devkit, LOC_synset_mapping.txt, synset_words.txt or words.txt has the classes' names.
    The headers of all archives are read, in a minute or two; memory: about 400 bytes an image.

    Raises:
        DataError: a file that is missing, damaged or not the original; another number of classes or images.
    """
    facts, source = facts or ImageNetFacts(), source.absolute()
    tree = _tree(source, facts)
    truth, words = _devkit(source, facts.devkit)
    train = {row: match[1] for row, match in tree.matching(r"train/(n\d{8})/[^/]+\.JPEG")}
    wnids = sorted(set(train.values()))
    if len(wnids) != facts.num_classes:
        raise DataError(
            f"{source}: has {len(wnids):,} classes in train instead of {facts.num_classes:,}; give the "
            "original, or pack a part of it with `capsdist pack folder`"
        )
    for name in _WORDS:
        words = words or words_in(tree.text(name) or "")
    classes, number = class_names(wnids, words), {wnid: label for label, wnid in enumerate(wnids)}
    splits = {"train": train, "test": _validation(tree, truth)}
    found = {}
    for split, rows in splits.items():
        if len(rows) != facts.counts[split] or not set(rows.values()) <= number.keys():
            raise DataError(
                f"{source}: has {len(rows):,} images of the classes in train for {split} instead of "
                f"{facts.counts[split]:,}; get the original again"
            )
        labels = [number[wnid] for wnid in rows.values()]
        # One thread: as many shards are written at once as there are cores.
        found[split] = replace(members_of(tree, list(rows), labels, classes, split), threads=1)
    return found


def _tree(source: Path, facts: ImageNetFacts) -> Tree:
    """Return the files of `source`, with members of archives as if they were unpacked into train and val."""
    if not source.is_dir():
        raise DataError(f"{source}: is not a folder; give the one that holds {_TRAIN} or the folder train")
    listing = Listing(source)
    add_folder(listing, source, without=_NOT_READ)
    classes = sorted((source / "train").glob("n????????.tar"))
    for path in [source / _TRAIN, source / _VAL, *classes]:
        if not path.is_file():
            continue
        with readable(path), path.open("rb") as file:
            size = facts.sizes.get(path.name, path.stat().st_size)
            if path.stat().st_size != size:
                raise DataError(
                    f"{path}: has {path.stat().st_size:,} bytes, the original has {size:,}; get it again"
                )
            container = listing.contain(str(path), path.stat(), path.name)
            if path.name == _TRAIN:
                for wnid, start in _archives(file):
                    add_tar(listing, file, container, f"train/{wnid}/", start)
            else:
                add_tar(listing, file, container, "val/" if path.name == _VAL else f"train/{path.stem}/")
    return listing.tree()


def _archives(file: io.BufferedReader) -> list[tuple[str, int]]:
    """Return wnid and first byte of every archive inside the training archive."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        return [
            (match[1], member.offset_data)
            for member in tar
            if (match := re.fullmatch(r"(?:\./)?(n\d{8})\.tar", member.name))
        ]


def _devkit(source: Path, devkit: Original) -> tuple[list[str], dict[str, str]]:
    """Return the wnid of every validation image, in the order of names, and the words of every wnid.

    Both are empty without a devkit.
    """
    path = source / devkit.name
    if not path.is_file():
        return [], {}
    check_file(devkit, path)
    files = tar_members(path, ("meta.mat", _TRUTH))
    if len(files) != 2:
        raise DataError(f"{path}: has no meta.mat or no {_TRUTH}; get the original")
    synsets = load_mat(io.BytesIO(files["meta.mat"]), ["synsets"], path)["synsets"].reshape(-1)
    numbers, wnids, words = (
        [np.squeeze(value).item() for value in synsets[name]] for name in ("ILSVRC2012_ID", "WNID", "words")
    )
    wnid_of = {int(number): str(wnid) for number, wnid in zip(numbers, wnids, strict=True)}
    truth = [wnid_of[int(line)] for line in files[_TRUTH].split()]
    return truth, dict(zip(map(str, wnids), map(str, words), strict=True))


def _validation(tree: Tree, truth: list[str]) -> dict[int, str]:
    """Return the wnid of every validation image by its number in `tree`."""
    if by_folder := {row: match[1] for row, match in tree.matching(r"val/(n\d{8})/[^/]+\.JPEG")}:
        return by_folder
    flat = {match[1]: row for row, match in tree.matching(r"val/(ILSVRC2012_val_\d{8})\.JPEG")}
    known = dict(
        zip((f"ILSVRC2012_val_{number:08d}" for number in range(1, len(truth) + 1)), truth, strict=True)
    )
    if text := tree.text(_SOLUTION):
        rows = csv.DictReader(io.StringIO(text))
        known = {row["ImageId"]: row["PredictionString"].partition(" ")[0] for row in rows}
    if flat and not known:
        raise DataError(
            f"{tree.source}: has validation images without labels; put {_DEVKIT.name} or "
            f"{_SOLUTION} beside them, or sort them into folders val/WNID"
        )
    return {row: known[name] for name, row in flat.items() if name in known}


def _load(source: Path | None, folder: Path, command: str) -> dict[str, Members]:
    if source is None and not folder.is_dir():
        raise DataError(
            "ImageNet is given to registered researchers only: register at https://image-net.org, get "
            f"{_TRAIN} (138 GB), {_VAL} (6.3 GB) and {_DEVKIT.name} of ILSVRC2012 into one "
            "folder, or unpack Kaggle's imagenet-object-localization-challenge, "
            f"then run: {command} --source FOLDER"
        )
    return load_imagenet(source or folder)


IMAGENET_FILES = DatasetSpec(
    name="imagenet",
    licence="non-commercial research and education only, see image-net.org; cite Russakovsky et al. 2015",
    title="ImageNet-1k (1,281,167 JPEGs of 1,000 classes; test: the 50,000 official validation images)",
    classes=(),
    load=_load,
    source=(
        f"Folder that holds {_TRAIN}, {_VAL} and the devkit's tar.gz, or folders train/WNID and val/WNID, or "
        "Kaggle's copy; default: originals/imagenet below the root."
    ),
)
"""What `capsdist.launch.packing.IMAGENET` packs in parallel."""
