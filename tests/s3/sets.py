"""Small random data sets for tests that put them on S3."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capsdist.data import Index, write_split

CLASSES = list("0123456789")


@dataclass(frozen=True)
class Set:
    """What a split holds."""

    images: np.ndarray
    labels: np.ndarray

    def write(self, folder: str | Path, **options: object) -> Index:
        """Pack it into `folder`, four shards of 21 KB or so for the default size."""
        defaults = {"classes": CLASSES, "block_size": 16, "shard_size": 30}
        return write_split(folder, self.images, self.labels, **{**defaults, **options})  # type: ignore[arg-type]


def random_set(seed: int, num: int = 103, shape: tuple[int, int, int] = (2, 9, 11)) -> Set:
    """Return random images and labels."""
    rng = np.random.default_rng(seed)
    return Set(rng.integers(0, 256, (num, *shape), dtype=np.uint8), rng.integers(0, 10, num))
