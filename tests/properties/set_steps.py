"""What reads a data set, and what must come of it whatever has happened to its files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from capsdist.data import check_split, verify_split, write_split
from capsdist.data.format.source import open_split
from capsdist.errors import DataError
from encoded_images import CLASSES, Images, write

__all__ = ["KINDS", "read_or_refused", "write_set"]

KINDS = ("blocks", "blocks, zstd", "encoded images")
NUM = 70
SHAPE = (3, 6, 5)


@cache
def images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """What is in the set, of every kind: images as they are decoded, and labels."""
    return Images(NUM).decoded(np.arange(NUM), SHAPE), np.arange(NUM) % len(CLASSES)


def write_set(folder: Path, kind: str = "blocks") -> Path:
    """Write a few shards and their index into `folder`, and return it."""
    images, labels = images_and_labels()
    if kind == "encoded images":
        write(folder, Images(NUM), shard_bytes=12_000)
    else:
        compression = "zstd" if "zstd" in kind else "none"
        write_split(
            folder, images, labels, classes=CLASSES, compression=compression, block_size=8, shard_size=30
        )
    return folder


def read(place: str) -> dict[str, np.ndarray]:
    """All samples of the set."""
    split = open_split(place, size=SHAPE[1:])
    out = {"image": np.empty((NUM, *SHAPE), np.uint8), "label": np.empty(NUM, np.int64)}
    split.gather_into(np.arange(NUM), out)
    return out


def read_or_refused(place: str) -> None:
    """Check that every reader gives what was written, or ends with one line that names the place."""
    images, labels = images_and_labels()
    for work in (check_split, read, verify_split):
        found, message = None, ""
        try:
            found = work(place)
        except DataError as error:
            message = str(error)
        assert "\n" not in message
        assert message == "" or place in message
        if isinstance(found, dict):
            assert np.array_equal(found["image"], images)
            assert np.array_equal(found["label"], labels)
