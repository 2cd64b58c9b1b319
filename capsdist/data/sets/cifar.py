"""Read the original CIFAR-10 python batches: a folder of pickles, or the tar.gz that holds it.

Format (Krizhevsky 2009): each batch is a pickled dict with b"data", uint8 [N,3072], a row the red, green
and blue plane of a 32x32 image, and b"labels", a list of N class numbers.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from capsdist.data.sets.originals import Original, Splits, content, opened
from capsdist.errors import DataError

__all__ = ["ARCHIVE", "load_cifar", "unpickle_batch"]

ARCHIVE = "cifar-10-python.tar.gz"
_FOLDER = "cifar-10-batches-py"
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


def unpickle_batch(data: bytes, where: object) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N,3,32,32] and labels int64 [N] of one batch, running none of its code.

    Raises:
        DataError: not such a batch, or one that asks for anything but numpy arrays.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        images, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"], np.int64)
        if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
            raise ValueError(f"data is {images.dtype} {images.shape} for {len(labels)} labels")
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{where}: is not a CIFAR-10 batch ({error}); get the original") from None
    return images.reshape(-1, 3, 32, 32), labels


def load_cifar(source: Path, files: Mapping[str, Sequence[Original]]) -> Splits:
    """Return images uint8 [N,3,32,32] and labels int64 [N] of every split.

    source: the batches' folder, the folder above it, or the tar.gz. files: per split its batches in
    order. A batch is unpickled only after its checksum was compared.

    Raises:
        DataError: a batch that is missing, damaged, or not the original.
    """
    if source.is_dir() and (source / _FOLDER).is_dir():
        source = source / _FOLDER
    elif (source / ARCHIVE).is_file():
        source = source / ARCHIVE
    names = {one.name for batches in files.values() for one in batches}
    contents = _from_folder(source, names) if source.is_dir() else _from_archive(source, names)
    splits: Splits = {}
    for split, originals in files.items():
        batches = []
        for original in originals:
            if original.name not in contents:
                raise DataError(f"{source}: holds no {original.name}; give the folder of all batches")
            where = f"{source}/{original.name}"
            batches.append(unpickle_batch(original.check(contents[original.name], where), where))
        images, labels = zip(*batches, strict=True)
        splits[split] = (np.concatenate(images), np.concatenate(labels))
    return splits


def _from_folder(folder: Path, names: set[str]) -> dict[str, bytes]:
    return {name: content(folder / name) for name in names if (folder / name).is_file()}


def _from_archive(path: Path, names: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with opened(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                name = Path(member.name).name
                if member.isfile() and name in names and (held := tar.extractfile(member)):
                    found[name] = held.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); give the folder or the tar.gz") from None
    return found
