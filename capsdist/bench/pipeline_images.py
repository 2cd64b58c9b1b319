"""Images that the benchmarks of the input pipeline read: real ones where they are there, or random ones."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np

from capsdist.data.format.packed import IMAGE, LABEL
from capsdist.data.sets.mnist import MNIST, load_mnist

__all__ = ["jpeg_tars", "random_images", "real_digits", "tar_contents"]


def real_digits(data: Path | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the training images of MNIST, uint8 [60000,1,28,28], and labels, int64 [60000].

    None: the folder `data` has no MNIST/raw with the original idx files.
    """
    if data is None or not (source := data / "MNIST" / "raw").is_dir():
        return None
    train = load_mnist(source, source, f"capsdist pack {MNIST.name}")["train"]
    arrays = train.read(0, len(train))
    return arrays[IMAGE], arrays[LABEL]


def random_images(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images of MNIST's size, uint8 [num,1,28,28], and labels, int64 [num]; always the same."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num, 1, 28, 28), dtype=np.uint8), rng.integers(0, 10, num)


def jpeg_tars(data: Path | None) -> dict[str, tuple[Path, tuple[int, int]]]:
    """Return the tar files of real JPEG files that `data` has, with height and width to decode them to.

    By the beginning of the figure's name: `jpeg`, 64x64 images of Tiny-ImageNet, which keep their size, and
    `jpeg_large`, a sample of ImageNet in full size, which is scaled to 224x224.
    """
    if data is None:
        return {}
    known = {
        "jpeg": (data / "tiny-imagenet" / "val.tar", (64, 64)),
        "jpeg_large": (data / "imagenet-sample" / "imagenet-100.tar", (224, 224)),
    }
    return {name: found for name, found in known.items() if found[0].is_file()}


def tar_contents(path: Path) -> list[bytes]:
    """Return the JPEG files in the tar file `path`, in its order."""
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.lower().endswith((".jpg", ".jpeg"))]
        return [file.read() for member in members if (file := tar.extractfile(member))]
