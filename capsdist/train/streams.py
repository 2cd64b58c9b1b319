"""The reader of a run's training images, by `data.reader`: one function and one line in `READERS` each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from capsdist.config import Config
from capsdist.config.images import image_shape
from capsdist.config.tar_urls import expand_urls
from capsdist.data import TrainStream, read_index
from capsdist.data.format.source import SourceIndex
from capsdist.data.stream import Stream
from capsdist.data.web_stream import WebData, WebStream
from capsdist.train.splits import check_splits, check_test_split, split_folders

__all__ = ["READERS", "Streamed", "open_stream", "web_data"]


@dataclass(frozen=True)
class Streamed:
    """The training images of a run. train: what they are called; test_folder: what to validate on, if any."""

    stream: Stream
    train: str
    test_folder: str | None


def open_stream(config: Config, *, rank: int, world_size: int, pin: bool) -> Streamed:
    """Return the training images of rank `rank` as `data.reader` reads them.

    Raises:
        DataError, ConfigError: they, or the split to validate on, are not what the network takes.
    """
    options = {
        "seed": config.train.seed,
        "global_batch_size": config.train.global_batch_size,
        "lanes": config.data.lanes,
        "window": config.data.window,
        "rank": rank,
        "world_size": world_size,
        "pin": pin,
        "partners": config.data.mixup > 0,
    }
    return READERS[config.data.reader](config, options)


def web_data(config: Config, test: SourceIndex | None) -> WebData:
    """Return what the tar files of `data.urls` hold; `test`: the split to validate on, which names classes.

    Raises:
        DataError: `test` has other classes, or more labels an image, than the network.
    """
    data, model = config.data, config.model
    classes = data.classes or (test.classes if test else ())
    if test:
        check_test_split(config, classes, test)
    numbers = tuple(str(label) for label in range(len(classes), model.num_classes))
    return WebData(
        urls=tuple(expand_urls(data.urls)),
        num_samples=data.num_samples or 0,  # None is refused before
        image_shape=image_shape(model),
        classes=(*classes, *numbers),
        num_labels=model.num_labels,
    )


def _packed(config: Config, options: Mapping[str, Any]) -> Streamed:
    train_folder, test_folder = split_folders(config)
    stream = TrainStream(train_folder, last_batch=config.data.last_batch, **options)
    check_splits(config, stream.index, read_index(test_folder))
    return Streamed(stream, train_folder, test_folder)


def _webdataset(config: Config, options: Mapping[str, Any]) -> Streamed:
    test_folder = split_folders(config)[1] if config.data.name else None
    data = web_data(config, read_index(test_folder) if test_folder else None)
    return Streamed(WebStream(data, **options), config.data.urls, test_folder)


READERS: Mapping[str, Callable[[Config, Mapping[str, Any]], Streamed]] = {
    "packed": _packed,
    "webdataset": _webdataset,
}
"""Readers by their names in `data.reader`."""
