"""Read the idx files of MNIST and its relatives, and find or fetch a whole set of them.

Format (LeCun, Cortes, Burges): two zero bytes, type (8: uint8), number of dimensions, the dimensions as
big-endian uint32, then the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from capsdist.data.sets.originals import Original, Splits, content, download, find
from capsdist.errors import DataError

__all__ = ["FILES", "load_idx_set", "load_or_download", "parse_idx"]

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""The image and the label file of every split, named alike in MNIST and all its relatives."""

_SUBFOLDERS = ("", "raw", "MNIST/raw", "FashionMNIST/raw")  # the last two as torchvision lays them out


def parse_idx(data: bytes, where: object) -> np.ndarray:
    """Return the uint8 array of an uncompressed idx file; `where` names it in errors.

    Raises:
        DataError: not an idx file of uint8, or more or fewer values than its header says.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(f"{where}: starts with {data[:4]!r}, not an idx file of uint8; get the original")
    start = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4")) if len(data) >= start else ()
    if len(shape) != data[3] or len(data) - start != prod(shape):
        raise DataError(f"{where}: has {len(data)} bytes, its header says {shape}; get the original")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def load_idx_set(folder: Path, sha256: Mapping[str, str]) -> Splits:
    """Return images uint8 [N,1,H,W] and labels int64 [N] of both splits, read from `folder`.

    sha256: of the uncompressed content of every file of `FILES`. Files may be with or without .gz.

    Raises:
        DataError: a file that is missing, damaged, not the original, or labels that do not match images.
    """
    splits: Splits = {}
    for split, names in FILES.items():
        paths = [find(folder, name, _SUBFOLDERS) for name in names]
        images, labels = (
            parse_idx(content(path, Original(name, sha256[name])), path)
            for name, path in zip(names, paths, strict=True)
        )
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(f"{paths[1]}: labels {labels.shape} do not match images {images.shape}")
        splits[split] = (images[:, None], labels.astype(np.int64))
    return splits


def load_or_download(
    source: Path | None, sha256: Mapping[str, str], mirrors: Sequence[str], folder: Path, *, command: str
) -> Splits:
    """Return what `load_idx_set` reads from `source`; without one, fetch the files into `folder` first.

    command: the calling command, named in the manual steps of an error.

    Raises:
        DataError: as `load_idx_set` and `download`.
    """
    if source:
        return load_idx_set(source, sha256)
    originals = [Original(name, sha256[name]) for names in FILES.values() for name in names]
    archives = " ".join(f"{original.name}.gz" for original in originals)
    manual = f"get {archives} from {mirrors[0]}/ into a folder, then run: {command} --source FOLDER"
    for original in originals:
        urls = [f"{mirror}/{original.name}.gz" for mirror in mirrors]
        check = partial(content, original=original)
        download(urls, folder / f"{original.name}.gz", check, manual=manual)
    return load_idx_set(folder, sha256)
