"""smallNORB: 24,300 + 24,300 stereo pairs of 96x96 of 50 toys in 5 classes (LeCun, Huang, Bottou 2004).

Both cameras are channels of one image. Further fields, numbered as in the original files: instance 0..9 (4,
6, 7, 8, 9 are for training, 0, 1, 2, 3, 5 for testing), elevation 0..8 (30 + 5 * elevation degrees), azimuth
0, 2, .., 34 (10 * azimuth degrees), lighting 0..5.

Novel viewpoints (Hinton, Sabour, Frosst 2018, section 5.1): training images have the azimuths 0, 2, 4, 30,
32, 34 or the elevations 0, 1, 2; `test` has the other views of the test toys. `validation` has the test toys
in the training views, on which that paper matches networks before it compares them on novel views: no novel
view is looked at before the test.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from capsdist.data.format.samples import FieldType, Part, PartSamples, Samples, SelectedSamples
from capsdist.data.sets.norb import parse_matrix
from capsdist.data.sets.originals import Original, content, download, find
from capsdist.data.sets.spec import SPLITS, TRAIN_TEST, DatasetSpec
from capsdist.errors import DataError

__all__ = ["SMALLNORB", "SMALLNORB_AZIMUTH", "SMALLNORB_ELEVATION", "load_smallnorb", "novel_views"]

_TRAINING, _TESTING = "smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing"
# Of the uncompressed files; both files of categories have the same content.
_FILES = {
    "train": {
        "dat": Original(f"{_TRAINING}-dat.mat", "8138a0902307b32dfa0025a36dfa45ec", "md5"),
        "cat": Original(f"{_TRAINING}-cat.mat", "fd5120d3f770ad57ebe620eb61a0b633", "md5"),
        "info": Original(f"{_TRAINING}-info.mat", "19faee774120001fc7e17980d6960451", "md5"),
    },
    "test": {
        "dat": Original(f"{_TESTING}-dat.mat", "e9920b7f7b2869a8f1a12e945b2c166c", "md5"),
        "cat": Original(f"{_TESTING}-cat.mat", "fd5120d3f770ad57ebe620eb61a0b633", "md5"),
        "info": Original(f"{_TESTING}-info.mat", "7c5b871cc69dcadec1bf6a18141f5edc", "md5"),
    },
}
_MIRROR = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small"
_SHAPE = (2, 96, 96)
_CODES = {
    "instance": range(10),
    "elevation": range(9),
    "azimuth": range(0, 36, 2),
    "lighting": range(6),
}
_TRAINING_VIEWS = {"azimuth": (0, 2, 4, 30, 32, 34), "elevation": (0, 1, 2)}
_CLASSES = ("animal", "human", "airplane", "truck", "car")


def load_smallnorb(
    folder: Path, files: Mapping[str, Mapping[str, Original]] = _FILES
) -> dict[str, tuple[Samples, dict[str, np.ndarray]]]:
    """Return every split's samples, and their label, instance, elevation, azimuth and lighting, int64 [N].

    The images of a split, 448 million bytes, are read and checked when they are asked for first.

    Raises:
        DataError: a file that is missing, damaged, or not the original.
    """
    return {split: _split(folder, originals) for split, originals in files.items()}


def _split(folder: Path, originals: Mapping[str, Original]) -> tuple[Samples, dict[str, np.ndarray]]:
    paths = {kind: find(folder, original.name) for kind, original in originals.items()}
    labels, info = (_matrix(paths[kind], originals[kind]) for kind in ("cat", "info"))
    if labels.ndim != 1 or info.shape != (len(labels), len(_CODES)):
        raise DataError(
            f"{paths['info']}: has shape {info.shape} for labels {labels.shape}, not (N, {len(_CODES)}); "
            "get the original"
        )
    factors = {"label": labels} | dict(zip(_CODES, info.T, strict=True))
    for name, codes in (_CODES | {"label": range(len(_CLASSES))}).items():
        wrong = np.flatnonzero(~np.isin(factors[name], codes))
        if wrong.size:
            where = paths["cat" if name == "label" else "info"]
            raise DataError(
                f"{where}: {name} of pair {wrong[0]} is {factors[name][wrong[0]]}; get the original"
            )
    factors = {name: np.ascontiguousarray(codes, np.int64) for name, codes in factors.items()}
    fields = {"image": FieldType(np.dtype(np.uint8), _SHAPE)}
    fields |= {name: FieldType(np.dtype(np.int64)) for name in factors}

    def read() -> dict[str, np.ndarray]:
        return {"image": _matrix(paths["dat"], originals["dat"]), **factors}

    return PartSamples(fields, [Part(len(labels), read, paths["dat"])]), factors


def _matrix(path: Path, original: Original) -> np.ndarray:
    return parse_matrix(content(path, original), path)


def novel_views(
    splits: Mapping[str, tuple[Samples, Mapping[str, np.ndarray]]], factor: str
) -> dict[str, Samples]:
    """Return the splits train, validation and test of novel viewpoints; factor: "azimuth" or "elevation"."""
    (training, factors), (testing, of_tests) = splits["train"], splits["test"]
    familiar = np.isin(of_tests[factor], _TRAINING_VIEWS[factor])
    return {
        "train": SelectedSamples(training, np.flatnonzero(np.isin(factors[factor], _TRAINING_VIEWS[factor]))),
        "validation": SelectedSamples(testing, np.flatnonzero(familiar)),
        "test": SelectedSamples(testing, np.flatnonzero(~familiar)),
    }


def _load(factor: str | None, source: Path | None, folder: Path, command: str) -> dict[str, Samples]:
    if source is None:
        source = folder.with_name("smallnorb")  # its variants take the files from there
        names = " ".join(f"{one.name}.gz" for files in _FILES.values() for one in files.values())
        manual = f"get {names} from {_MIRROR}/ into a folder, then run: {command} --source FOLDER"
        for original in (one for files in _FILES.values() for one in files.values()):
            check = partial(content, original=original)
            download([f"{_MIRROR}/{original.name}.gz"], source / f"{original.name}.gz", check, manual=manual)
    splits = load_smallnorb(source)
    return (
        novel_views(splits, factor) if factor else {split: samples for split, (samples, _) in splits.items()}
    )


def _spec(factor: str | None, title: str) -> DatasetSpec:
    name = f"smallnorb_{factor}" if factor else "smallnorb"
    return DatasetSpec(
        name=name,
        licence="research purposes only (LeCun, Huang, Bottou 2004)",
        title=title,
        classes=_CLASSES,
        load=partial(_load, factor),
        source="Folder that holds the six original files, with or without .gz; default: download them.",
        splits=SPLITS.get(name, TRAIN_TEST),
        together=("label", "instance"),  # one of the toys, in all its views
    )


SMALLNORB = _spec(None, "smallNORB (24,300 + 24,300 stereo pairs of 96x96) from its six original files")
SMALLNORB_AZIMUTH = _spec(
    "azimuth", "smallNORB for novel azimuths: trained on a third of the azimuths, tested on the others"
)
SMALLNORB_ELEVATION = _spec(
    "elevation", "smallNORB for novel elevations: trained on the lowest three, tested on the other six"
)
