"""Read the original CIFAR python batches: a folder of pickles, or the tar.gz that holds it.

Format (Krizhevsky 2009): each batch is a pickled dict with b"data", uint8 [N,3072], a row the red, green
and blue plane of a 32x32 image, and lists of N class numbers: b"labels" in CIFAR-10, b"fine_labels" and
b"coarse_labels" in CIFAR-100.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capsdist.data.sets.archives import tar_members
from capsdist.data.sets.originals import Original, Splits, content
from capsdist.errors import DataError

__all__ = ["ARCHIVE", "CIFAR_10", "CIFAR_100", "CifarFormat", "load_batches", "load_cifar", "unpickle_batch"]


@dataclass(frozen=True)
class CifarFormat:
    """How CIFAR-10 or CIFAR-100 is published: its title, archive, folder in it, and keys of label lists."""

    title: str
    archive: str
    folder: str
    label_keys: tuple[bytes, ...]


CIFAR_10 = CifarFormat("CIFAR-10", "cifar-10-python.tar.gz", "cifar-10-batches-py", (b"labels",))
CIFAR_100 = CifarFormat(
    "CIFAR-100", "cifar-100-python.tar.gz", "cifar-100-python", (b"fine_labels", b"coarse_labels")
)
ARCHIVE = CIFAR_10.archive
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can make arrays and builtin containers, and call nothing else."""

    def find_class(self, module: str, name: str) -> object:  # type: ignore[override]
        """Return one of the few allowed names."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def unpickle_batch(data: bytes, where: object, kind: CifarFormat = CIFAR_10) -> tuple[np.ndarray, ...]:
    """Return images uint8 [N,3,32,32] and labels int64 [N] of every key, running none of the batch's code.

    Raises:
        DataError: not such a batch, or one that asks for anything but numpy arrays.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        images = np.asarray(batch[b"data"])
        labels = [np.asarray(batch[key], np.int64) for key in kind.label_keys]
        for held in labels:
            if images.dtype != np.uint8 or images.shape != (len(held), 3072):
                raise ValueError(f"data is {images.dtype} {images.shape} for {len(held)} labels")
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{where}: is not a {kind.title} batch ({error}); get the original") from None
    return images.reshape(-1, 3, 32, 32), *labels


def load_cifar(source: Path, files: Mapping[str, Sequence[Original]]) -> Splits:
    """Return images uint8 [N,3,32,32] and labels int64 [N] of every split of CIFAR-10; see `load_batches`.

    Raises:
        DataError: as `load_batches`.
    """
    splits = load_batches(source, files, CIFAR_10)
    return {split: (images, labels) for split, (images, labels) in splits.items()}


def load_batches(
    source: Path, files: Mapping[str, Sequence[Original]], kind: CifarFormat
) -> dict[str, tuple[np.ndarray, ...]]:
    """Return images uint8 [N,3,32,32] of every split and labels int64 [N] for every key of `kind`.

    source: the batches' folder, the folder above it, or the tar.gz. files: per split its batches in
    order. A batch is unpickled only after its checksum was compared.

    Raises:
        DataError: a batch that is missing, damaged, or not the original.
    """
    if source.is_dir() and (source / kind.folder).is_dir():
        source = source / kind.folder
    elif (source / kind.archive).is_file():
        source = source / kind.archive
    names = {one.name for batches in files.values() for one in batches}
    contents = _from_folder(source, names) if source.is_dir() else tar_members(source, names)
    splits: dict[str, tuple[np.ndarray, ...]] = {}
    for split, originals in files.items():
        batches = []
        for original in originals:
            if original.name not in contents:
                raise DataError(f"{source}: holds no {original.name}; give the folder of all batches")
            where = f"{source}/{original.name}"
            batches.append(unpickle_batch(original.check(contents[original.name], where), where, kind))
        splits[split] = tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return splits


def _from_folder(folder: Path, names: set[str]) -> dict[str, bytes]:
    return {name: content(folder / name) for name in names if (folder / name).is_file()}
