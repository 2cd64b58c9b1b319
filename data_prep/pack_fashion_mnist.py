"""Pack Fashion-MNIST (60,000 + 10,000 images of 28x28) from its four original idx files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from capsdist.data.sets.idx import load_or_download
from capsdist.data.sets.originals import originals_folder
from capsdist.data.sets.pack import pack, run_command

# Of the uncompressed files. Debian's package differs from the originals in the gzip header only: with
# name and time put back, its files have the md5 sums that the authors publish.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",)
COMMAND = "python data_prep/pack_fashion_mnist.py"


def main(source: Path | None = None, root: str = "data") -> None:
    """Pack Fashion-MNIST from its original files.

    Args:
        source: Folder that holds the four original idx files, with or without .gz; default: that of
            Debian's package dataset-fashion-mnist if it is installed, else download them.
        root: Folder or s3:// URL of the packed data sets; the set goes into its subfolder `fashion_mnist`.
    """
    place = source or (DEBIAN if DEBIAN.is_dir() else None)
    folder = originals_folder(root, "fashion_mnist")
    load = partial(load_or_download, place, SHA256, MIRRORS, folder, command=COMMAND)
    pack(root, "fashion_mnist", CLASSES, load)


if __name__ == "__main__":
    run_command(main)
