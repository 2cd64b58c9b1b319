"""Fashion-MNIST: 60,000 + 10,000 images of clothes of 28x28 (Xiao, Rasul, Vollgraf 2017)."""

from __future__ import annotations

from pathlib import Path

from capsdist.data.format.samples import Samples, in_memory
from capsdist.data.sets.idx import load_or_download
from capsdist.data.sets.spec import DatasetSpec

__all__ = ["DEBIAN", "FASHION_MNIST"]

# Of the uncompressed files. Debian's package differs from the originals in the gzip header only: with
# name and time put back, its files have the md5 sums that the authors publish.
_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",)


def _load(source: Path | None, folder: Path, command: str) -> dict[str, Samples]:
    place = source or (DEBIAN if DEBIAN.is_dir() else None)
    return in_memory(load_or_download(place, _SHA256, _MIRRORS, folder, command=command))


FASHION_MNIST = DatasetSpec(
    name="fashion_mnist",
    licence="MIT (Zalando Research)",
    title="Fashion-MNIST (60,000 + 10,000 images of 28x28) from its four original idx files",
    classes=_CLASSES,
    load=_load,
    source=(
        "Folder that holds the four original idx files, with or without .gz; default: that of Debian's "
        "package dataset-fashion-mnist if it is installed, else download them."
    ),
)
