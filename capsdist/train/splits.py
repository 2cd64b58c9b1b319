"""Check that the splits of a run have enough images and classes that agree.

Checked before a run by the index alone, and again where training begins.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from capsdist.config import Config
from capsdist.console import Log
from capsdist.data.format.checks import check_num_classes, check_num_labels
from capsdist.data.format.classes import check_same_classes
from capsdist.data.format.source import SourceIndex
from capsdist.errors import ConfigError, Problem
from capsdist.storage import join
from capsdist.train.checkpoint import Checkpoint

if TYPE_CHECKING:
    from capsdist.data.stream import StreamIndex

__all__ = ["check_splits", "check_test_split", "check_trained_classes", "split_folders"]


def split_folders(config: Config) -> tuple[str, str]:
    """Return where the training and the test split of a run lie: local paths or s3:// URLs."""
    data = config.data
    return join(data.root, data.name, data.train_split), join(data.root, data.name, data.test_split)


def check_splits(config: Config, train: SourceIndex, test: SourceIndex) -> None:
    """Check by their indexes that a run of `config` can train on `train` and be validated on `test`.

    Raises:
        DataError: a split has more classes than the network, or both number their classes differently.
        ConfigError: `train.global_batch_size` is more than the images there are.
    """
    places = split_folders(config)
    for place, index in zip(places, (train, test), strict=True):
        check_num_classes(index, config.model.num_classes, place)
        check_num_labels(index, config.model.num_labels, place)
    check_same_classes(
        train.classes, test.classes, where=places, remedy="pack both with the same list of classes"
    )
    batch, num = config.train.global_batch_size, train.num_samples
    if batch > num:
        rule = f"is more than the {num:,} images of {places[0]}"
        raise ConfigError(
            [Problem("train.global_batch_size", batch, rule, f"set --train.global-batch-size {num} or less")]
        )


def check_test_split(config: Config, classes: Sequence[str], test: SourceIndex) -> None:
    """Check that a run whose training images have `classes` can be validated on the packed split `test`.

    Raises:
        DataError: it has more classes, or labels an image, than the network, or other classes.
    """
    place = split_folders(config)[1]
    check_num_classes(test, config.model.num_classes, place)
    check_num_labels(test, config.model.num_labels, place)
    remedy = "set --data.classes to the names in the order of the labels, or leave it out"
    check_same_classes(classes, test.classes, where=("data.classes", place), remedy=remedy)


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
