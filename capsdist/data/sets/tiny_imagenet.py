"""Tiny-ImageNet: 100,000 + 10,000 colour images of 64x64 in 200 classes (Stanford CS231n, 2015).

The labels of the official test images were never published, so `test` has the official validation images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from capsdist.data.sets.members import Members, members_of
from capsdist.data.sets.originals import Original, check_file, download
from capsdist.data.sets.spec import DatasetSpec
from capsdist.data.sets.synsets import class_names, words_in
from capsdist.data.sets.trees import Tree, tree_of
from capsdist.errors import DataError

__all__ = ["TINY_IMAGENET", "load_tiny_imagenet"]

_ARCHIVE = Original("tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "md5", packed=True)
_MIRRORS = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",)
_COUNTS = (500, 50)  # training and validation images of each class


def load_tiny_imagenet(
    source: Path, scratch: Path, *, archive: Original = _ARCHIVE, counts: tuple[int, int] = _COUNTS
) -> dict[str, Members]:
    """Return both splits from the folder or zip archive `source`; labels follow the order of the wnids.

    archive: its name and checksum, compared with a file of that name; counts: training and validation images
    that each class has.

    Raises:
        DataError: a file that is missing or damaged, or another number of images.
    """
    if source.name == archive.name:
        check_file(archive, source)
    tree = tree_of(source, scratch)
    wnids = sorted((tree.text("wnids.txt") or "").split())
    if not wnids:
        raise DataError(f"{source}: has no wnids.txt; give the folder tiny-imagenet-200 or its zip archive")
    number = {wnid: label for label, wnid in enumerate(wnids)}
    classes = class_names(wnids, words_in(tree.text("words.txt") or ""))
    train = {
        row: number[match[1]]
        for row, match in tree.matching(r"train/(n\d{8})/images/[^/]+\.JPEG")
        if match[1] in number
    }
    labels = _annotations(tree, number)
    test = {
        row: labels[match[1]]
        for row, match in tree.matching(r"val/images/([^/]+\.JPEG)")
        if match[1] in labels
    }
    splits = {"train": train, "test": test}
    for (split, rows), count in zip(splits.items(), counts, strict=True):
        _check_counts(source, split, list(rows.values()), wnids, count)
    return {
        split: members_of(tree, list(rows), list(rows.values()), classes, split)
        for split, rows in splits.items()
    }


def _annotations(tree: Tree, number: dict[str, int]) -> dict[str, int]:
    """Return the label of every validation image: val_annotations.txt has its name and wnid, and its box."""
    lines = (tree.text("val/val_annotations.txt") or "").splitlines()
    labels = {}
    for place, line in enumerate(lines, 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in number:
            raise DataError(
                f"{tree.source}: line {place} of val/val_annotations.txt has {wnid!r}, which is no line of "
                "wnids.txt; get the original"
            )
        labels[name] = number[wnid]
    return labels


def _check_counts(source: Path, split: str, labels: list[int], wnids: Sequence[str], count: int) -> None:
    found = np.bincount(np.array(labels, np.int64), minlength=len(wnids))
    if (found != count).any():
        label = int((found != count).argmax())
        raise DataError(
            f"{source}: class {wnids[label]} has {found[label]} images for {split} instead of {count}; get "
            "the original, or pack what is there with `capsdist pack folder`"
        )


def _load(source: Path | None, folder: Path, command: str) -> dict[str, Members]:
    if source is None:
        manual = f"get it from {_MIRRORS[0]}, then run: {command} --source {_ARCHIVE.name}"
        source = folder / _ARCHIVE.name
        download(_MIRRORS, source, lambda path: check_file(_ARCHIVE, path), manual=manual)
    return load_tiny_imagenet(source, folder)


TINY_IMAGENET = DatasetSpec(
    name="tiny_imagenet",
    licence="none given; cite Le and Yang 2015, images from ImageNet (Russakovsky et al. 2015)",
    title="Tiny-ImageNet (100,000 JPEGs of 64x64; test: the 10,000 official validation images)",
    classes=(),
    load=_load,
    source="Folder tiny-imagenet-200, the one above it, or tiny-imagenet-200.zip; default: download that.",
)
