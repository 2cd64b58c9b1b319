"""CIFAR-10: 50,000 + 10,000 colour images of 32x32 (Krizhevsky 2009)."""

from __future__ import annotations

from pathlib import Path

from capsdist.data.format.samples import Samples, in_memory
from capsdist.data.sets.cifar import ARCHIVE, load_cifar
from capsdist.data.sets.originals import Original, download
from capsdist.data.sets.spec import DatasetSpec

__all__ = ["CIFAR10"]

# md5 as published with the data set.
_FILES = {
    "train": (
        Original("data_batch_1", "c99cafc152244af753f735de768cd75f", "md5"),
        Original("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec", "md5"),
        Original("data_batch_3", "54ebc095f3ab1f0389bbae665268c751", "md5"),
        Original("data_batch_4", "634d18415352ddfa80567beed471001a", "md5"),
        Original("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb", "md5"),
    ),
    "test": (Original("test_batch", "40351d587109b95175f43aff81a1287e", "md5"),),
}
_MIRRORS = (f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",)


def _load(source: Path | None, folder: Path, command: str) -> dict[str, Samples]:
    if source:
        return in_memory(load_cifar(source, _FILES))
    manual = f"get {ARCHIVE} from {_MIRRORS[0]}, then run: {command} --source {ARCHIVE}"
    archive = folder / ARCHIVE
    download(_MIRRORS, archive, lambda path: load_cifar(path, _FILES), manual=manual)
    return in_memory(load_cifar(archive, _FILES))


CIFAR10 = DatasetSpec(
    name="cifar10",
    licence="none given; cite Krizhevsky 2009",
    title="CIFAR-10 (50,000 + 10,000 colour images of 32x32) from its original python batches",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    load=_load,
    source=(
        "Folder of the batches (cifar-10-batches-py), the folder above it, or cifar-10-python.tar.gz; "
        "default: download that archive."
    ),
)
