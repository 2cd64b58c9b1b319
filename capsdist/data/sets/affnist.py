"""affNIST, the test set: 10,000 MNIST digits with 32 affine transformations each, in 40x40 (Tieleman 2013).

The original is 32 .mat files 1.mat .. 32.mat in test_batches.zip. Each holds the struct affNISTdata, of which
image, uint8 (1600, 10000), a column for every image, and label_int, (1, 10000), are read.
"""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np

from capsdist.data.format.samples import FieldType, Part, PartSamples, Samples
from capsdist.data.sets.archives import zip_member
from capsdist.data.sets.mat import load_mat
from capsdist.data.sets.originals import Original, download, open_checked
from capsdist.data.sets.spec import SPLITS, DatasetSpec
from capsdist.errors import DataError

__all__ = ["AFFNIST", "load_affnist"]

_ARCHIVE = Original(
    "test_batches.zip", "83f829c01c021fa731e062e7671b0075a3e8de0a511fb6b5d403458528d0e0d1", packed=True
)
_MIRROR = "https://www.cs.toronto.edu/~tijmen/affNIST/32x/transformed"
_SIDE = 40
_NUM_BATCHES, _BATCH_SIZE = 32, 10_000
_FIELDS = {"image": FieldType(np.dtype(np.uint8), (1, _SIDE, _SIDE)), "label": FieldType(np.dtype(np.int64))}


def load_affnist(source: Path, archive: Original = _ARCHIVE, batch_size: int = _BATCH_SIZE) -> Samples:
    """Return all 32 batches, each of `batch_size` images, one batch in memory at a time.

    source: test_batches.zip, or a folder that holds it. Its checksum is compared whenever it is opened: of
    unpacked batches none is published.

    Raises:
        DataError: no such archive, or another one; a batch of another structure when it is read.
    """
    if source.is_dir():
        source = source / archive.name
    if not source.is_file():
        raise DataError(f"{source}: is not there; give {archive.name} of affNIST, or a folder that holds it")
    with open_checked(source, archive):
        names = [f"{number}.mat" for number in range(1, _NUM_BATCHES + 1)]
    parts = [Part(batch_size, partial(_batch, source, archive, name), f"{source}/{name}") for name in names]
    return PartSamples(_FIELDS, parts)


def _batch(source: Path, archive: Original, name: str) -> dict[str, np.ndarray]:
    """Return images uint8 [N,1,40,40] and labels int64 [N] of one batch."""
    where = f"{source}/{name}"
    with open_checked(source, archive) as file:
        data = zip_member(file, name, source)
    if data is None:
        raise DataError(f"{source}: holds no {name}; get the original")
    held = load_mat(io.BytesIO(data), ("affNISTdata",), where)["affNISTdata"]
    try:
        struct = held[0, 0]
        images, labels = np.asarray(struct["image"]), np.asarray(struct["label_int"]).reshape(-1)
        if images.dtype != np.uint8 or images.shape != (_SIDE * _SIDE, len(labels)):
            raise ValueError(f"image is {images.dtype} {images.shape} for {len(labels)} labels")
        if not np.isin(labels, np.arange(10)).all():
            raise ValueError("label_int has values outside 0..9")
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: is not a batch of affNIST ({error}); get the original") from None
    return {"image": images.T.reshape(-1, 1, _SIDE, _SIDE), "label": labels.astype(np.int64)}


def _load(source: Path | None, folder: Path, command: str) -> dict[str, Samples]:
    if source:
        return {"test": load_affnist(source)}
    url = f"{_MIRROR}/{_ARCHIVE.name}"
    manual = (
        f"get {url}, then run: {command} --source {_ARCHIVE.name}; "
        "without it, affnist_like is a set generated from MNIST with the same ranges"
    )
    return {"test": load_affnist(download([url], folder / _ARCHIVE.name, load_affnist, manual=manual))}


AFFNIST = DatasetSpec(
    name="affnist",
    licence="affNIST (Tieleman 2013), freely available without restrictions",
    title="affNIST, the test set (320,000 transformed MNIST digits of 40x40) from its original .mat files",
    classes=tuple("0123456789"),
    load=_load,
    source="test_batches.zip of affNIST, or a folder that holds it; default: download it.",
    splits=SPLITS["affnist"],
)
