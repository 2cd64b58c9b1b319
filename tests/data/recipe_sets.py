"""Small splits of recipes, really written to disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from capsdist.data import write_split
from capsdist.data.recipes.index import RecipeIndex
from capsdist.data.recipes.source import Recipes, recipes_over, write_recipes

CLASSES = tuple("abcde")


@dataclass(frozen=True)
class MadeRecipes:
    """A split of recipes on disk, and the images and labels that it is made of."""

    folder: Path
    images: np.ndarray
    labels: np.ndarray
    index: RecipeIndex

    @property
    def source(self) -> Recipes:
        """A reader."""
        return Recipes(self.folder)

    def every(self, *names: str) -> dict[str, np.ndarray]:
        """Fields of all samples in storage order."""
        return self.source.fields(np.arange(self.index.num_samples), *names)


def make_recipes(
    root: Path,
    num: int = 60,
    *,
    shape: tuple[int, int, int] = (2, 6, 5),
    images_seed: int = 0,
    **options: Any,
) -> MadeRecipes:
    """Write `num` random images, the first classes more often than the last, and recipes over them."""
    rng = np.random.default_rng(images_seed)
    images = rng.integers(0, 256, (num, *shape), dtype=np.uint8)
    labels = np.minimum(rng.integers(0, 5, num), rng.integers(0, 5, num))
    labels[:5] = range(5)
    write_split(root / "digits", images, labels, classes=CLASSES, block_size=8, shard_size=25)
    index = recipes_over(root, "digits", **{"partners": 7, "pad": 2, "shift": 2, **options})
    write_recipes(root / "pairs", index)
    return MadeRecipes(root / "pairs", images, labels, index)
