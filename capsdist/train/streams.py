"""The reader of a run's training images, by `data.reader`: one function and one line in `READERS` each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from capsdist.config import Config
from capsdist.config.shapes import image_shape
from capsdist.config.tar_urls import expand_urls
from capsdist.data import TrainStream
from capsdist.data.format.source import SourceIndex, open_split
from capsdist.data.stream import Stream
from capsdist.data.web_stream import WebData, WebStream
from capsdist.train.splits import check_classes, check_splits, split_folders

__all__ = ["READERS", "open_stream", "web_data", "workers_on_node"]

Indexes = Mapping[str, SourceIndex]
"""Indexes of packed splits by their fields, as `Data.splits` names them."""


def open_stream(config: Config, *, rank: int, world_size: int, device: torch.device) -> Stream:
    """Return the training images of rank `rank`, which trains on `device`, as `data.reader` reads them.

    Raises:
        DataError, ConfigError: they, or the splits to evaluate on, are not what the network takes.
    """
    options = {
        "seed": config.train.seed,
        "global_batch_size": config.train.global_batch_size,
        "lanes": config.data.lanes,
        "window": config.data.window,
        "rank": rank,
        "world_size": world_size,
        "pin": device.type == "cuda",
        "partners": config.data.mixup > 0,
    }
    places = split_folders(config)
    others = {field: open_split(place).index for field, place in places.items() if field != "train_split"}
    return READERS[config.data.reader](config, others, device, options)


def web_data(config: Config, others: Indexes) -> WebData:
    """Return what the tar files of `data.urls` hold; `others`: the splits to evaluate on, which name classes.

    Raises:
        DataError: one of `others` has other classes, or more labels an image, than the network.
    """
    data, model = config.data, config.model
    classes = data.classes or next((index.classes for index in others.values()), ())
    remedy = "set --data.classes to the names in the order of the labels, or leave it out"
    check_classes(config, classes, others, where="data.classes", remedy=remedy)
    numbers = tuple(str(label) for label in range(len(classes), model.num_classes))
    return WebData(
        urls=tuple(expand_urls(data.urls)),
        num_samples=data.num_samples or 0,  # None is refused before
        image_shape=image_shape(model),
        classes=(*classes, *numbers),
        num_labels=model.num_labels,
    )


def workers_on_node(world_size: int) -> int:
    """Return how many workers share the memory of this machine.

    Ray Train and torchrun say it; without them, all may be on one.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE") or world_size)


def _packed(config: Config, others: Indexes, device: torch.device, options: Mapping[str, Any]) -> Stream:
    data = config.data
    stream = TrainStream(
        split_folders(config)["train_split"],
        last_batch=data.last_batch,
        decode_size=data.decode_size,
        resident=data.resident,
        device=device,
        workers_on_node=workers_on_node(options["world_size"]),
        parts=config.model.draws_parts,
        **options,
    )
    check_splits(config, {"train_split": stream.index, **others})
    return stream


def _webdataset(config: Config, others: Indexes, device: torch.device, options: Mapping[str, Any]) -> Stream:
    return WebStream(web_data(config, others), **options)


READERS: Mapping[str, Callable[[Config, Indexes, torch.device, Mapping[str, Any]], Stream]] = {
    "packed": _packed,
    "webdataset": _webdataset,
}
"""Readers by their names in `data.reader`."""
