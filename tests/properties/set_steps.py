"""What reads a data set, and what must come of it whatever has happened to its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from capsdist.data import Split, check_split, verify_split, write_split
from capsdist.errors import DataError

__all__ = ["read_or_refused", "write_set"]

NUM = 70


def images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """What is in the set."""
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (NUM, 2, 5, 3), dtype=np.uint8), np.arange(NUM) % 7


def write_set(folder: Path) -> Path:
    """Write three shards and their index into `folder`, and return it."""
    images, labels = images_and_labels()
    write_split(folder, images, labels, classes=list("abcdefg"), block_size=8, shard_size=30)
    return folder


def read_or_refused(place: str) -> None:
    """Check that every reader gives what was written, or ends with one line that names the place."""
    images, labels = images_and_labels()
    for read in (check_split, lambda place: Split(place).gather(np.arange(NUM)), verify_split):
        found, message = None, ""
        try:
            found = read(place)
        except DataError as error:
            message = str(error)
        assert "\n" not in message
        assert message == "" or place in message
        if isinstance(found, tuple):
            assert np.array_equal(found[0], images)
            assert np.array_equal(found[1], labels)
