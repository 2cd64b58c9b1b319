"""A few images of a data set, for runs that only show that everything works together.

They are the first of the packed set where there is one, else the first of the original files where the
machine has them, else made up in files of the original format (`made.py`). All are packed as the set is.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from capsdist.data.format.samples import ArraySamples, Samples, SelectedSamples
from capsdist.data.format.source import open_split
from capsdist.data.format.split import Split
from capsdist.data.sets.fashion_mnist import DEBIAN
from capsdist.data.sets.holdout import Holdout
from capsdist.data.sets.made import MADE, OWN_CLASSES
from capsdist.data.sets.members import Members
from capsdist.data.sets.multimnist import TEST_DIGITS, TRAIN_DIGITS, MultiOptions, pack_pairs
from capsdist.data.sets.originals import originals_folder
from capsdist.data.sets.pack import pack_dataset
from capsdist.data.sets.spec import DATASETS, DatasetSpec, find_dataset
from capsdist.errors import DataError
from capsdist.storage import join

if TYPE_CHECKING:
    from capsdist.data.sets.spec import Loaded

__all__ = ["pack_few"]

_NUM_TRAIN, _NUM = 96, 40  # images of splits to train on, and of others
_NUM_VALIDATION = 24  # of those to train on
_PARTNERS = 2  # of a digit of MultiMNIST
_MADE_UP = "made up for a smoke run"

_MADE_OF = {
    "affnist_train": "mnist", "affnist_like": "mnist",
    "emnist_letters": "emnist", "emnist_balanced": "emnist",
    "smallnorb_azimuth": "smallnorb", "smallnorb_elevation": "smallnorb",
}  # fmt: skip
"""Sets that take the original files of another."""
_FOLDERS: dict[str, tuple[str | Path, ...]] = {
    "mnist": ("MNIST",),
    "fashion_mnist": ("FashionMNIST", "fashion-mnist", DEBIAN),
    "emnist": ("EMNIST",),
    "cifar10": ("cifar-10-batches-py",),
    "cifar100": ("cifar-100-python",),
    "svhn": ("SVHN",),
    "affnist": ("affNIST",),
    "smallnorb": ("smallNORB",),
    "tiny_imagenet": ("tiny-imagenet-200",),
}
"""Folders that may hold original files, below that of CAPSDIST_DATA; so may one of the name of the set."""


class _Few(NamedTuple):
    """Samples by split, their licence, names of classes, and where they are from."""

    splits: Mapping[str, Samples | Members]
    licence: str
    classes: Sequence[str]
    words: str


def pack_few(name: str, splits: Sequence[str], root: str, target: str) -> str:
    """Pack a few images of the set `name` below `target` and return in one line where they are from.

    splits: those that are needed. root: of packed sets, where downloaded originals lie too; other original
    files are looked for in the folder that the variable CAPSDIST_DATA names. Nothing is downloaded.

    Raises:
        DataError: the set is not packed, and there is no made-up form of it; or a split that it never has.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # what packing prints is of folders that do not stay
        words = _PACKERS.get(name, _pack_samples)(name, splits, root, target)
    for split in splits:
        open_split(join(target, name, split))
    return f"{name}: {words}"


def _pack_samples(name: str, splits: Sequence[str], root: str, target: str) -> str:
    few = _few(name, splits, root, originals_folder(target, name))
    spec = find_dataset(name) if name in DATASETS else DatasetSpec(name=name, title="", classes=())
    spec = replace(
        spec,
        classes=tuple(few.classes),
        licence=few.licence,
        load=lambda *_: dict(few.splits),
        splits=tuple(few.splits),
        further_splits={},
        parallel=None,
    )
    holdout = None
    if not {*splits} <= {*spec.splits} and spec.can_be_divided:
        holdout = Holdout(share=0.25) if spec.together else Holdout(first=_NUM_VALIDATION)
    pack_dataset(spec, "", source=None, root=target, holdout=holdout)
    return few.words


def _pack_pairs(name: str, splits: Sequence[str], root: str, target: str, *, shift: int) -> str:
    """Pack pairs of digits: of the packed set itself, else of MNIST."""
    try:
        few = _packed(join(root, name), {"train": TRAIN_DIGITS, "test": TEST_DIGITS})
    except DataError:
        few = _few("mnist", ("train", "test"), root, originals_folder(target, "mnist"))
    options = MultiOptions(name=name, shift=shift, partners=_PARTNERS, root=target)
    pack_pairs(lambda: few.splits, options, _NUM_VALIDATION, few.licence)  # type: ignore[arg-type, return-value]
    return f"pairs of {few.words}"


_PACKERS: dict[str, Callable[[str, Sequence[str], str, str], str]] = {
    "multimnist": partial(_pack_pairs, shift=4),
    "multimnist_shift6": partial(_pack_pairs, shift=6),
}
"""Of sets that are no samples but recipes for them."""


def _few(name: str, splits: Sequence[str], root: str, scratch: Path) -> _Few:
    """Return a few samples of a set; scratch: where files may be written."""
    try:
        return _packed(join(root, name), {split: split for split in splits})
    except DataError as error:
        why = [str(error)]
    spec = find_dataset(name) if name in DATASETS else None
    if spec is not None and spec.load is not None:
        for folder in _places(name, root):
            try:
                return _original(spec, spec.load(folder, scratch, ""), folder)
            except DataError as error:
                why.append(str(error))
    if name not in MADE:
        raise DataError(f"{'; '.join(why)}; and there is no made-up form of it: pack {name}")
    made = MADE[name](scratch)
    kept = {split: _first(samples, split) for split, samples in made.items()}
    if len(why) == 1:
        why.append("no folder is known that holds its original files")
    words = f"made-up images in files of the original format ({'; '.join(why)})"
    return _Few(kept, _MADE_UP, spec.classes if spec else OWN_CLASSES, words)


def _packed(place: str, names: Mapping[str, str]) -> _Few:
    """Return the first samples of the set at `place`; names: of its splits, by what they are called here.

    Raises:
        DataError: a split is not packed, or not as pixels.
    """
    remedy = "pack it for real images"
    found = {split: open_split(join(place, name), remedy=remedy) for split, name in names.items()}
    if not all(isinstance(source, Split) for source in found.values()):
        raise DataError(f"{place}: has recipes or image files, of which a smoke run takes no part")
    few = {}
    for split, source in found.items():
        ids = np.arange(min(_num(split), source.index.num_samples))
        few[split] = ArraySamples(**source.fields(ids, *source.index.field))  # type: ignore[attr-defined]
    index = next(iter(found.values())).index
    return _Few(few, index.licence, index.classes, f"the first images of {place}")  # type: ignore[attr-defined]


def _places(name: str, root: str) -> list[Path | None]:
    """Return folders that may hold the original files of a set; None: a package carries them."""
    if name == "digits":
        return [None]
    base = _MADE_OF.get(name, name)
    data, known = os.environ.get("CAPSDIST_DATA"), (*_FOLDERS.get(base, ()), base)
    below = [Path(data or "", folder) for folder in known if data or Path(folder).is_absolute()]
    return [place for place in (*below, originals_folder(root, base)) if place.is_dir()]


def _original(spec: DatasetSpec, loaded: Mapping[str, Loaded], folder: Path | None) -> _Few:
    """Return the first samples of what was loaded of the original files in `folder`."""
    kept = {split: _first(samples, split) for split, samples in loaded.items() if split != "extra"}
    words = f"the original files in {folder}" if folder else "the originals, which a package carries"
    return _Few(kept, spec.licence, spec.classes, f"the first images of {words}")


def _first(samples: Loaded, split: str) -> Samples | Members:
    """Return the first few samples of a split."""
    if isinstance(samples, tuple):
        samples = ArraySamples(image=samples[0], label=samples[1])
    ids = np.arange(min(_num(split), len(samples)))
    return samples.take(ids) if isinstance(samples, Members) else SelectedSamples(samples, ids)


def _num(split: str) -> int:
    return _NUM_TRAIN if split.startswith("train") else _NUM
