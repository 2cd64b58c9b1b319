"""Small random splits, really written to disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from capsdist.data import Index, read_index, write_split
from version_1 import write_version_1


@dataclass(frozen=True)
class Made:
    """A split on disk and what it must hold."""

    folder: Path
    images: np.ndarray
    labels: np.ndarray
    index: Index


@pytest.fixture
def make_split(tmp_path: Path) -> Callable[..., Made]:
    """Return a function that writes a split of random images."""

    def make(
        num: int = 103, *, shape=(2, 5, 3), classes: int = 10, block_size: int = 8, shard_size: int = 30,
        seed: int = 0, name: str = "split", kind: str = "none", labels_each: int = 0,
    ) -> Made:  # fmt: skip
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (num, *shape), dtype=np.uint8)
        labels = rng.integers(0, classes, num)
        labels[:2] = [0, classes - 1]
        if labels_each:
            labels = rng.integers(-1, classes, (num, labels_each))
        names = [f"class {number}" for number in range(classes)]
        folder, sizes = tmp_path / name, {"block_size": block_size, "shard_size": shard_size}
        if kind == "version 1":
            write_version_1(folder, images, labels, names, **sizes)
            return Made(folder, images, labels, read_index(folder))
        index = write_split(folder, images, labels, classes=names, compression=kind, **sizes)
        return Made(folder, images, labels, index)

    return make
