"""`DatasetSpec` describes a data set. A new data set is a `DatasetSpec` in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from capsdist.importing import find

if TYPE_CHECKING:
    from capsdist.data.sets.originals import Splits

__all__ = ["DATASETS", "DatasetSpec", "find_dataset"]

DATASETS = {
    "mnist": "capsdist.data.sets.mnist:MNIST",
    "digits": "capsdist.data.sets.digits:DIGITS",
    "fashion_mnist": "capsdist.data.sets.fashion_mnist:FASHION_MNIST",
    "cifar10": "capsdist.data.sets.cifar10:CIFAR10",
}
"""Import paths of the data sets that have a name."""


@dataclass(frozen=True)
class DatasetSpec:
    """How the original files of a data set become packed splits.

    Attributes:
        name: folder of the packed set, below the root of all data sets.
        title: what it is, in one line.
        classes: name of each class, by label.
        load: ``load(source, folder, command)`` returns, per split, images uint8 [N, C, H, W] and labels
            int64 [N]. source: what `--source` gives, or None; folder: where downloads go; command: what an
            error tells the user to run after a download by hand.
        source: help text of `--source`; empty for a set that takes none.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    load: Callable[[Path | None, Path, str], Splits]
    source: str = ""


def find_dataset(name: str) -> DatasetSpec:
    """Return the data set that `name` means: a name of `DATASETS`, or the import path of a `DatasetSpec`.

    Raises:
        ConfigError: there is none.
    """
    return find(name, DATASETS, DatasetSpec, field="dataset", thing="a data set")
