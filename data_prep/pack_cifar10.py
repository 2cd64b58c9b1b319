"""Pack CIFAR-10 (50,000 + 10,000 colour images of 32x32) from its original python batches."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from capsdist.data.sets.cifar import ARCHIVE, load_cifar
from capsdist.data.sets.originals import Original, Splits, download, originals_folder
from capsdist.data.sets.pack import pack, run_command

# md5 as published with the data set.
FILES = {
    "train": (
        Original("data_batch_1", "c99cafc152244af753f735de768cd75f", "md5"),
        Original("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec", "md5"),
        Original("data_batch_3", "54ebc095f3ab1f0389bbae665268c751", "md5"),
        Original("data_batch_4", "634d18415352ddfa80567beed471001a", "md5"),
        Original("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb", "md5"),
    ),
    "test": (Original("test_batch", "40351d587109b95175f43aff81a1287e", "md5"),),
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MIRRORS = (f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",)
MANUAL = f"get {ARCHIVE} from {MIRRORS[0]}, then run: python data_prep/pack_cifar10.py --source {ARCHIVE}"


def load(source: Path | None, archive: Path) -> Splits:
    """Return both splits, read from `source`, or from `archive`, which is fetched if it is not there."""
    if source:
        return load_cifar(source, FILES)
    download(MIRRORS, archive, lambda path: load_cifar(path, FILES), manual=MANUAL)
    return load_cifar(archive, FILES)


def main(source: Path | None = None, root: str = "data") -> None:
    """Pack CIFAR-10 from its original python batches.

    Args:
        source: Folder of the batches (cifar-10-batches-py), the folder above it, or cifar-10-python.tar.gz;
            default: download that archive.
        root: Folder or s3:// URL of the packed data sets; the set goes into its subfolder `cifar10`.
    """

    pack(root, "cifar10", CLASSES, partial(load, source, originals_folder(root, "cifar10") / ARCHIVE))


if __name__ == "__main__":
    run_command(main)
