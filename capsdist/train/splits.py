"""Which splits a run reads, and whether they have enough images and classes that agree.

Checked before a run by the index alone, and again where training begins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from capsdist.config import Config
from capsdist.console import Log
from capsdist.data.format.checks import check_num_classes, check_num_labels
from capsdist.data.format.classes import check_same_classes
from capsdist.data.format.source import SourceIndex
from capsdist.data.recipes.source import check_pairs
from capsdist.errors import ConfigError, Problem
from capsdist.storage import join
from capsdist.train.checkpoint import Checkpoint

if TYPE_CHECKING:
    from capsdist.data.stream import StreamIndex

__all__ = ["check_classes", "check_splits", "check_trained_classes", "split_folders"]


def split_folders(config: Config) -> dict[str, str]:
    """Return where the splits of a run lie, as `Data.splits` names them: local paths or s3:// URLs."""
    data = config.data
    return {field: join(data.root, data.name, split) for field, split in data.splits.items()}


def check_splits(config: Config, indexes: Mapping[str, SourceIndex]) -> None:
    """Check by the `indexes` of the splits of `split_folders` that a run of `config` can use them.

    Raises:
        DataError: a split has more classes than the network, two number their classes differently, or the
            training images are no pairs for a decoder that draws each label by itself.
        ConfigError: `train.global_batch_size` is more than the images there are.
    """
    train, train_place = indexes["train_split"], split_folders(config)["train_split"]
    check_classes(
        config, train.classes, indexes, where=train_place, remedy="pack both with the same list of classes"
    )
    if config.model.draws_parts:
        check_pairs(train, train_place)
    batch, num = config.train.global_batch_size, train.num_samples
    if batch > num:
        rule = f"is more than the {num:,} images of {train_place}"
        raise ConfigError(
            [Problem("train.global_batch_size", batch, rule, f"set --train.global-batch-size {num} or less")]
        )


def check_classes(
    config: Config, classes: Sequence[str], indexes: Mapping[str, SourceIndex], *, where: str, remedy: str
) -> None:
    """Check that a run whose training images have `classes`, named by `where`, can use the packed splits.

    Raises:
        DataError: a split has more classes, or labels an image, than the network, or other classes.
    """
    for field, index in indexes.items():
        place = split_folders(config)[field]
        check_num_classes(index, config.model.num_classes, place)
        check_num_labels(index, config.model.num_labels, place)
        check_same_classes(classes, index.classes, where=(where, place), remedy=remedy)


def check_trained_classes(
    checkpoint: Checkpoint, index: StreamIndex, place: str | os.PathLike[str], log: Log
) -> None:
    """Check that the split `index` at `place` has the classes that `checkpoint` was trained on.

    `log` is told if the checkpoint does not name them.

    Raises:
        DataError: naming the first label whose names differ.
    """
    if checkpoint.classes is None:
        log(
            "warning: the checkpoint is of version 0.1 and does not name its classes; "
            f"make sure that {os.fspath(place)} numbers them as its training data did"
        )
        return
    check_same_classes(
        checkpoint.classes,
        index.classes,
        where=("the checkpoint's training data", os.fspath(place)),
        remedy="give a split that was packed with the same list of classes",
    )
