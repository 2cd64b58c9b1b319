"""A few images of MNIST, MultiMNIST or CIFAR-10, for runs that only show that everything works together.

They are the first of the packed set where there is one; else printed digits or random pixels, which go
through files of the original format and their parser.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np

from capsdist.data.format.shards import write_split
from capsdist.data.format.split import Split
from capsdist.data.recipes.source import recipes_over, write_recipes
from capsdist.data.sets.cifar import unpickle_batch
from capsdist.data.sets.printed import printed_digits
from capsdist.errors import DataError
from capsdist.storage import join

__all__ = ["pack_few"]

_NUM = {"train": 96, "test": 40}
_PARTNERS, _PAD = 2, 4  # of MultiMNIST
_Images = tuple[np.ndarray, np.ndarray]


def pack_few(name: str, root: str, target: str) -> str:
    """Pack 96 + 40 images of the set `name` below `target` and return in one line where they are from.

    name: "mnist", "cifar10", or "multimnist": 192 + 80 pairs of the digits of MNIST; root: of packed sets.
    """
    if name != "multimnist":
        splits, words = _images(name, root)
        for split, (images, labels) in splits.items():
            write_split(join(target, name, split), images, labels, classes=[str(n) for n in range(10)])
        return f"{name}: {words}"
    splits, words = _images("mnist", root)
    folder = join(target, name)
    for split, (images, labels) in splits.items():
        digits = f"digits_{split}"
        write_split(join(folder, digits), images, labels, classes=[str(n) for n in range(10)])
        recipes = recipes_over(folder, digits, partners=_PARTNERS, pad=_PAD, shift=_PAD)
        write_recipes(join(folder, split), recipes)
    return f"{name}: pairs of {words}"


def _images(name: str, root: str) -> tuple[dict[str, _Images], str]:
    place = join(root, name)
    try:
        packed = {split: Split(join(place, split)) for split in _NUM}
        found = {
            split: source.gather(np.arange(min(_NUM[split], source.index.num_samples)))
            for split, source in packed.items()
        }
        return found, f"the first images of {place}"
    except DataError:
        made = {split: _MAKERS[name](num, seed) for seed, (split, num) in enumerate(_NUM.items())}
        return made, f"made-up images in the original format, because {place} is not packed"


def _cifar(num: int, seed: int) -> _Images:
    """Return random colour images, labels in turn, through a pickled batch."""
    data = np.random.default_rng(seed).integers(0, 256, (num, 3072), dtype=np.uint8)
    batch = pickle.dumps({b"data": data, b"labels": [number % 10 for number in range(num)]})
    images, labels = unpickle_batch(batch, "a made-up batch")
    return images, labels


_MAKERS: dict[str, Callable[[int, int], _Images]] = {
    "mnist": lambda num, seed: printed_digits(num),
    "cifar10": _cifar,
}
