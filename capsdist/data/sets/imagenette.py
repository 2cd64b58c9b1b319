"""Imagenette and Imagewoof: ten easy and ten hard classes of ImageNet (Howard 2019), version 2.

The published archives differ in the size of the images: 160 or 320 pixels on the shorter side, or the
original one. `test` has the images of the folder `val`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from capsdist.data.sets.members import Members, members_of
from capsdist.data.sets.originals import Original, check_file, download
from capsdist.data.sets.spec import DatasetSpec
from capsdist.data.sets.trees import tree_of
from capsdist.errors import DataError

__all__ = ["IMAGENETTE", "IMAGEWOOF", "load_imagenette"]

_MIRROR = "https://s3.amazonaws.com/fast-ai-imageclas"
_NETTE = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player",
    "n03000684": "chain saw", "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck",
    "n03425413": "gas pump", "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip
_WOOF = {
    "n02086240": "Shih-Tzu", "n02087394": "Rhodesian ridgeback", "n02088364": "beagle",
    "n02089973": "English foxhound", "n02093754": "Border terrier", "n02096294": "Australian terrier",
    "n02099601": "golden retriever", "n02105641": "Old English sheepdog", "n02111889": "Samoyed",
    "n02115641": "dingo",
}  # fmt: skip
# Of the archives: md5 as torchvision states them, sha256 as FastAI.jl does; imagewoof2.tgz has none.
_ARCHIVES = {
    "imagenette2.tgz": Original("imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612", "md5", True),
    "imagenette2-320.tgz": Original("imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3", "md5", True),
    "imagenette2-160.tgz": Original("imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412", "md5", True),
    "imagewoof2-320.tgz": Original(
        "imagewoof2-320.tgz",
        "4e4905ed7643120daaf9bf3b2ef7f3a7e8396d9bdaf254a38c6f01f618b4973d",
        packed=True,
    ),
    "imagewoof2-160.tgz": Original(
        "imagewoof2-160.tgz",
        "663c22f69c2802d85e2a67103c017e047096702ffddf9149a14011b7002539bf",
        packed=True,
    ),
}


def load_imagenette(
    source: Path,
    scratch: Path,
    names: Mapping[str, str],
    counts: Mapping[str, int],
    archives: Mapping[str, Original] = _ARCHIVES,
) -> dict[str, Members]:
    """Return both splits from a folder or tgz archive; an archive is unpacked into the folder `scratch`.

    names: of the classes by wnid, in the order of labels; counts: images that the splits have; archives:
    checksums by name of file.

    Raises:
        DataError: a file that is missing or damaged, another class or number of images.
    """
    if source.name in archives:
        check_file(archives[source.name], source)
    tree = tree_of(source, scratch)
    label = {wnid: number for number, wnid in enumerate(names)}
    found: dict[str, dict[int, int]] = {"train": {}, "test": {}}
    for row, match in tree.matching(r"(train|val)/(n\d{8})/[^/]+\.JPEG"):
        if match[2] not in label:
            raise DataError(
                f"{source}: has the class {match[2]}, which this set does not have; get the original"
            )
        found["train" if match[1] == "train" else "test"][row] = label[match[2]]
    for split, rows in found.items():
        if len(rows) != counts[split]:
            raise DataError(
                f"{source}: has {len(rows):,} images for {split} instead of {counts[split]:,}; give the "
                "original folder, with train and val, or its archive"
            )
    return {
        split: members_of(tree, list(rows), list(rows.values()), tuple(names.values()), split)
        for split, rows in found.items()
    }


def _load(
    archive: str,
    names: Mapping[str, str],
    counts: Mapping[str, int],
    source: Path | None,
    folder: Path,
    command: str,
) -> dict[str, Members]:
    if source is None:
        url, source = f"{_MIRROR}/{archive}", folder / archive
        manual = f"get it from {url}, then run: {command} --source {archive}"
        download([url], source, lambda path: check_file(_ARCHIVES[archive], path), manual=manual)
    return load_imagenette(source, folder, names, counts)


_LICENCE = "Apache 2.0 (fastai/imagenette); images from ImageNet, for non-commercial research"

IMAGENETTE = DatasetSpec(
    name="imagenette",
    licence=_LICENCE,
    title="Imagenette 2 (9,469 + 3,925 JPEGs of 10 classes of ImageNet)",
    classes=tuple(_NETTE.values()),
    load=partial(_load, "imagenette2-320.tgz", _NETTE, {"train": 9469, "test": 3925}),
    source=(
        "Folder with train and val, or imagenette2.tgz, imagenette2-320.tgz or imagenette2-160.tgz; default: "
        "download the one of 320 pixels."
    ),
)
IMAGEWOOF = DatasetSpec(
    name="imagewoof",
    licence=_LICENCE,
    title="Imagewoof 2 (9,025 + 3,929 JPEGs of 10 breeds of dogs of ImageNet)",
    classes=tuple(_WOOF.values()),
    load=partial(_load, "imagewoof2-320.tgz", _WOOF, {"train": 9025, "test": 3929}),
    source=(
        "Folder with train and val, or imagewoof2.tgz, imagewoof2-320.tgz or imagewoof2-160.tgz; default: "
        "download the one of 320 pixels."
    ),
)
