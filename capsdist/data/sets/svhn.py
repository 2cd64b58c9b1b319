"""SVHN, cropped digits: 73,257 + 26,032 colour images of 32x32, and 531,131 easier ones (Netzer et al. 2011).

The original files are .mat: X, uint8 (32, 32, 3, N), and y, (N, 1), in which label 10 means digit 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from capsdist.data.format.samples import FieldType, Part, PartSamples, Samples
from capsdist.data.sets.mat import load_mat, mat_shapes
from capsdist.data.sets.originals import Original, download, open_checked
from capsdist.data.sets.spec import DatasetSpec
from capsdist.errors import DataError

__all__ = ["SVHN", "load_svhn"]

_FILES = {
    "train": Original("train_32x32.mat", "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
    "test": Original("test_32x32.mat", "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
    "extra": Original("extra_32x32.mat", "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3"),
}
_MIRROR = "http://ufldl.stanford.edu/housenumbers"
_FIELDS = {"image": FieldType(np.dtype(np.uint8), (3, 32, 32)), "label": FieldType(np.dtype(np.int64))}


def load_svhn(folder: Path, files: Mapping[str, Original] = _FILES) -> dict[str, Samples]:
    """Return the splits of `files` whose .mat files are in `folder`; extra may be missing.

    Every split is unpacked to memory when it is read first: 0.2 GB for train, 1.6 GB for extra.

    Raises:
        DataError: a file that is missing, damaged, or not the original.
    """
    wanted = {split: one for split, one in files.items() if split != "extra" or (folder / one.name).is_file()}
    return {split: _samples(folder / original.name, original) for split, original in wanted.items()}


def _samples(path: Path, original: Original) -> Samples:
    if not path.is_file():
        raise DataError(f"{path.parent}: holds no {path.name}; give the folder of the original .mat files")
    with open_checked(path, original) as file:
        shape = mat_shapes(file, path).get("X", ())
    if len(shape) != 4 or shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X has shape {shape}, not (32, 32, 3, N); get the original")
    return PartSamples(_FIELDS, [Part(shape[3], partial(_read, path, original), path)])


def _read(path: Path, original: Original) -> dict[str, np.ndarray]:
    with open_checked(path, original) as file:
        found = load_mat(file, ("X", "y"), path)
    labels = found["y"].reshape(-1).astype(np.int64)
    wrong = np.flatnonzero((labels < 1) | (labels > 10))
    if wrong.size:
        raise DataError(
            f"{path}: label {labels[wrong[0]]} of sample {wrong[0]} is outside 1..10; get the original"
        )
    return {"image": found["X"].transpose(3, 2, 0, 1), "label": labels % 10}


def _load(source: Path | None, folder: Path, command: str) -> dict[str, Samples]:
    if source:
        return load_svhn(source)
    names = "train_32x32.mat and test_32x32.mat"
    manual = f"get {names} from {_MIRROR}/ into a folder, then run: {command} --source FOLDER"
    for split in ("train", "test"):
        original = _FILES[split]
        check = partial(_samples, original=original)
        download([f"{_MIRROR}/{original.name}"], folder / original.name, check, manual=manual)
    return load_svhn(folder)


SVHN = DatasetSpec(
    name="svhn",
    licence="non-commercial use only (Netzer et al. 2011)",
    title="SVHN (73,257 + 26,032 colour images of 32x32 of house numbers) from its original .mat files",
    classes=tuple("0123456789"),
    load=_load,
    source=(
        "Folder that holds train_32x32.mat and test_32x32.mat; extra_32x32.mat becomes the split `extra` if "
        "it is there too (needs 2 GB of memory); default: download the first two."
    ),
    further_splits={"extra": _FILES["extra"].name},
)
