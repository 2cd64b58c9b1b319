"""MultiMNIST: two digits of different classes, shifted and overlaid (Sabour, Frosst, Hinton 2017, section 6).

Stored as recipes (`capsdist.data.recipes`) over the original images, which are packed as the splits
`digits_train` and `digits_test` of the same set. Each digit is the lower one of 1,000 pairs in 36x36.

- `train` has all 60,000 training digits (60 million images), as in the paper;
- `train_part` the last 50,000 of them and `validation` the first 10,000, as `valid_train` and `valid_test` of
  the authors' code: partners, too, are from the same part;
- `test` has the 10,000 test digits (10 million images).

Digits are shifted by up to 4 pixels each way (paper) or 6 (the command in the authors' README, and their test
data): what is then beyond the edge is cut off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from capsdist.console import DONE
from capsdist.data.format.samples import Samples
from capsdist.data.format.source import open_split
from capsdist.data.recipes.index import RecipeIndex
from capsdist.data.recipes.source import recipes_over, write_recipes
from capsdist.data.sets.mnist import MNIST, load_mnist
from capsdist.data.sets.originals import originals_folder
from capsdist.data.sets.pack import check_root, pack, summary
from capsdist.data.sets.spec import SPLITS, DatasetSpec
from capsdist.errors import DataError
from capsdist.storage import join

__all__ = ["MULTIMNIST", "TEST_DIGITS", "TRAIN_DIGITS", "MultiOptions", "pack_multimnist", "pack_pairs"]

_PAD = 4
_NUM_VALIDATION = 10_000
TRAIN_DIGITS, TEST_DIGITS = "digits_train", "digits_test"
"""Splits of the digits themselves."""


@dataclass(frozen=True)
class MultiOptions:
    """How pairs of digits are made.

    Attributes:
        name: Name of the data set: a sub-folder of `root`.
        shift: Largest shift of a digit in pixels, each way; paper: 4, official: 6.
        partners: Images in which each digit is the lower one.
        seed: Seed of partners and shifts.
        root: Folder or s3:// URL of the packed data sets.
    """

    name: str = "multimnist"
    shift: int = 4
    partners: int = 1000
    seed: int = 0
    root: str = "data"


def pack_multimnist(source: Path | None, options: MultiOptions, command: str) -> None:
    """Pack the digits and write the recipes, unless they are there and intact; see `DatasetSpec`.

    Raises:
        DataError: as `pack`; options out of range.
    """
    originals = originals_folder(options.root, MNIST.name)
    pack_pairs(lambda: load_mnist(source, originals, command), options, _NUM_VALIDATION)


def pack_pairs(
    load: Callable[[], Mapping[str, Samples]],
    options: MultiOptions,
    num_validation: int,
    licence: str = MNIST.licence,
) -> None:
    """Pack pairs of the digits that `load` returns, as its splits train and test; see `pack_multimnist`.

    num_validation: of the training digits, the first so many are those of `validation`.
    """
    folder = join(options.root, options.name)
    check_root(options.root, options.name)

    def digits_of() -> dict[str, Samples]:
        digits = load()
        return {TRAIN_DIGITS: digits["train"], TEST_DIGITS: digits["test"]}

    splits = (TRAIN_DIGITS, TEST_DIGITS)
    pack(options.root, options.name, MNIST.classes, digits_of, splits=splits, licence=licence)
    for split, digits, first, last in (
        ("train", TRAIN_DIGITS, 0, None),
        ("train_part", TRAIN_DIGITS, num_validation, None),
        ("validation", TRAIN_DIGITS, 0, num_validation),
        ("test", TEST_DIGITS, 0, None),
    ):
        index = recipes_over(
            folder,
            digits,
            first=first,
            last=last,
            partners=options.partners,
            pad=_PAD,
            shift=options.shift,
            seed=options.seed,
        )
        print(_write(join(folder, split), index))


def _write(folder: str, index: RecipeIndex) -> str:
    """Write `index` unless it is there; return what to say of it."""
    with contextlib.suppress(DataError):  # it is not there, or is damaged
        if open_split(folder).index.digest == index.digest:
            return f"already packed: {summary(folder, index)}"
    write_recipes(folder, index)
    return f"packed: {summary(folder, index)}"


def _run(command: str, argv: Sequence[str]) -> int:
    def run(
        options: tyro.conf.OmitArgPrefixes[MultiOptions],
        source: Annotated[Path | None, tyro.conf.arg(help=MNIST.source)] = None,
    ) -> int:
        """Pack MultiMNIST: recipes for 60 + 10 million pairs of overlaid digits.

        Args:
            options: How pairs of digits are made.
            source: As for mnist.
        """
        pack_multimnist(source, options, command)
        return DONE

    return tyro.cli(run, args=list(argv), prog=command)


MULTIMNIST = DatasetSpec(
    name="multimnist",
    title="MultiMNIST (60 + 10 million pairs of overlaid digits, 36x36) as recipes over the MNIST files",
    classes=MNIST.classes,
    run=_run,
    licence=MNIST.licence,
    splits=SPLITS["multimnist"],
)
