"""CIFAR-100: 50,000 + 10,000 colour images of 32x32 in 100 classes (Krizhevsky 2009).

Labels are the 100 fine classes; the field "coarse_label" has the 20 groups of five that they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from capsdist.data.format.samples import ArraySamples, Samples
from capsdist.data.sets.cifar import CIFAR_100, load_batches
from capsdist.data.sets.originals import Original, download
from capsdist.data.sets.spec import DatasetSpec
from capsdist.errors import DataError

__all__ = ["CIFAR100", "COARSE_CLASSES", "load_cifar100"]

_FILES = {
    "train": (Original("train", "16019d7e3df5f24257cddd939b257f8d", "md5"),),
    "test": (Original("test", "f0ef6b0ae62326f3e7ffdfab6717acfc", "md5"),),
}
_MIRRORS = (f"https://www.cs.toronto.edu/~kriz/{CIFAR_100.archive}",)
# fmt: off
_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger",
    "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
    "worm",
)
COARSE_CLASSES = (
    "aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables",
    "household_electrical_devices", "household_furniture", "insects", "large_carnivores",
    "large_man-made_outdoor_things", "large_natural_outdoor_scenes", "large_omnivores_and_herbivores",
    "medium_mammals", "non-insect_invertebrates", "people", "reptiles", "small_mammals", "trees",
    "vehicles_1", "vehicles_2",
)
# fmt: on


def load_cifar100(source: Path, files: Mapping[str, Sequence[Original]] = _FILES) -> dict[str, Samples]:
    """Return both splits: image uint8 (3, 32, 32), label and coarse_label int64; see `load_batches`.

    Raises:
        DataError: as `load_batches`, or a coarse label out of range.
    """
    splits: dict[str, Samples] = {}
    for split, (images, fine, coarse) in load_batches(source, files, CIFAR_100).items():
        if coarse.min() < 0 or coarse.max() >= len(COARSE_CLASSES):
            raise DataError(f"{source}: a coarse label of {split} is outside 0..19; get the original")
        splits[split] = ArraySamples(image=images, label=fine, coarse_label=coarse)
    return splits


def _load(source: Path | None, folder: Path, command: str) -> dict[str, Samples]:
    if source:
        return load_cifar100(source)
    name = CIFAR_100.archive
    manual = f"get {name} from {_MIRRORS[0]}, then run: {command} --source {name}"
    return load_cifar100(download(_MIRRORS, folder / name, load_cifar100, manual=manual))


CIFAR100 = DatasetSpec(
    name="cifar100",
    licence="none given; cite Krizhevsky 2009",
    title="CIFAR-100 (50,000 + 10,000 colour images of 32x32, 100 classes) from its original python batches",
    classes=_CLASSES,
    load=_load,
    source=(
        "Folder of the batches (cifar-100-python), the folder above it, or cifar-100-python.tar.gz; "
        "default: download that archive."
    ),
)
