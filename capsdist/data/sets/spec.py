"""`DatasetSpec` describes a data set. A new data set is a `DatasetSpec` in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from capsdist.importing import find

if TYPE_CHECKING:
    import numpy as np

    from capsdist.data.encoded.write import Run
    from capsdist.data.format.samples import Samples
    from capsdist.data.sets.members import Members

    Loaded = Samples | Members | tuple[np.ndarray, np.ndarray]

__all__ = ["DATASETS", "SPLITS", "TRAIN_PART", "TRAIN_TEST", "VALIDATION", "DatasetSpec", "find_dataset"]

DATASETS = {
    "mnist": "capsdist.data.sets.mnist:MNIST",
    "digits": "capsdist.data.sets.digits:DIGITS",
    "fashion_mnist": "capsdist.data.sets.fashion_mnist:FASHION_MNIST",
    "kmnist": "capsdist.data.sets.kmnist:KMNIST",
    "emnist_letters": "capsdist.data.sets.emnist:EMNIST_LETTERS",
    "emnist_balanced": "capsdist.data.sets.emnist:EMNIST_BALANCED",
    "multimnist": "capsdist.data.sets.multimnist:MULTIMNIST",
    "affnist": "capsdist.data.sets.affnist:AFFNIST",
    "affnist_train": "capsdist.data.sets.affnist_train:AFFNIST_TRAIN",
    "affnist_like": "capsdist.data.sets.affnist_like:AFFNIST_LIKE",
    "cifar10": "capsdist.data.sets.cifar10:CIFAR10",
    "cifar100": "capsdist.data.sets.cifar100:CIFAR100",
    "svhn": "capsdist.data.sets.svhn:SVHN",
    "smallnorb": "capsdist.data.sets.smallnorb:SMALLNORB",
    "smallnorb_azimuth": "capsdist.data.sets.smallnorb:SMALLNORB_AZIMUTH",
    "smallnorb_elevation": "capsdist.data.sets.smallnorb:SMALLNORB_ELEVATION",
    "tiny_imagenet": "capsdist.data.sets.tiny_imagenet:TINY_IMAGENET",
    "imagenette": "capsdist.data.sets.imagenette:IMAGENETTE",
    "imagewoof": "capsdist.data.sets.imagenette:IMAGEWOOF",
    "imagenet": "capsdist.launch.packing:IMAGENET",
    "folder": "capsdist.data.sets.folder:FOLDER",
    "webdataset": "capsdist.data.sets.webdataset:WEBDATASET",
}
"""Import paths of the data sets that have a name."""

SPLITS = {
    "digits": ("train", "train_part", "validation", "test"),
    "affnist": ("test",),
    "affnist_like": ("test",),
    "multimnist": ("train", "train_part", "validation", "test"),
    "smallnorb_azimuth": ("train", "validation", "test"),
    "smallnorb_elevation": ("train", "validation", "test"),
}
"""Splits of those that have others than `TRAIN_TEST`; here, so that `--check` imports no data set."""

TRAIN_TEST = ("train", "test")

VALIDATION, TRAIN_PART = "validation", "train_part"
"""Splits of the images of `train`: those for validation, and the others."""


@dataclass(frozen=True)
class DatasetSpec:
    """How the original files of a data set become packed splits.

    Attributes:
        name: folder of the packed set, below the root of all data sets.
        title: what it is, in one line.
        classes: name of each class, by label; empty if `load` returns `Members`, which have names.
        load: ``load(source, folder, command)`` returns `Samples` per split, `Members` for image files that
            stay as they are, or a pair of images uint8 [N, C, H, W] and labels int64 [N]. source: what
            `--source` gives, or None; folder: where downloads go; command: what an error tells the user to
            run after a download by hand.
        source: help text of `--source`; empty for a set that takes none.
        licence: licence of the images, and whom to cite: a note in the index.
        splits: the splits that `load` returns.
        further_splits: splits that `load` returns as well if the folder `--source` holds a file: split to
            name of the file.
        together: fields whose values tell samples that belong together: none of those is for validation while
            another is for training.
        run: ``run(command, argv)`` packs a set that has options of its own, in the place of `load`, and
            returns the exit status.
        parallel: ``parallel(workers)`` returns a context in which the shards of `Members` are written by that
            many processes, 0 for as many as there are cores: what `write_encoded` takes as `run`.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    load: Callable[[Path | None, Path, str], Mapping[str, Loaded]] | None = None
    source: str = ""
    licence: str = ""
    splits: tuple[str, ...] = TRAIN_TEST
    further_splits: Mapping[str, str] = field(default_factory=dict)
    together: tuple[str, ...] = ()
    run: Callable[[str, Sequence[str]], int] | None = None
    parallel: Callable[[int], AbstractContextManager[Run]] | None = None

    @property
    def can_be_divided(self) -> bool:
        """Whether a part of `train` can be taken for validation: there is no such split yet."""
        return "train" in self.splits and VALIDATION not in self.splits

    def splits_of(self, source: Path | None) -> tuple[str, ...]:
        """Return the names of the splits that `load` returns for `source`."""
        if source is None:
            return self.splits
        further = (split for split, name in self.further_splits.items() if (source / name).is_file())
        return (*self.splits, *further)


def find_dataset(name: str) -> DatasetSpec:
    """Return the data set that `name` means: a name of `DATASETS`, or the import path of a `DatasetSpec`.

    Raises:
        ConfigError: there is none.
    """
    return find(name, DATASETS, DatasetSpec, field="dataset", thing="a data set")
