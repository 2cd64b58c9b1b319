"""Files with random content in the exact formats of original files: idx, NORB's matrices, .mat, archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from capsdist.data.sets.originals import Original


def original(path: Path, *, packed: bool = False) -> Original:
    """The entry of a table of files that describes `path` as it is."""
    return Original(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), packed=packed)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def matrix_bytes(array: np.ndarray) -> bytes:
    """A binary matrix of NORB: at least three dimensions are written, those too many as 1."""
    magic = {np.dtype(np.uint8): 0x1E3D4C55, np.dtype(np.int32): 0x1E3D4C54}[array.dtype]
    shape = array.shape + (1,) * (3 - array.ndim)
    return struct.pack(f"<Ii{len(shape)}i", magic, array.ndim, *shape) + array.tobytes()


# ---- .mat, version 5, written by hand: scipy, which writes them too, is what reads them

_CLASSES = {np.dtype(np.uint8): (9, 2), np.dtype(np.float64): (6, 9)}  # of arrays, and of their values


def _element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def _array(name: str, value: np.ndarray | Mapping[str, np.ndarray]) -> bytes:
    """An array (type 14): flags, dimensions, name, and values in Fortran order or the fields of a struct."""
    struct_class, name_element = 2, _element(1, name.encode())
    if not isinstance(value, np.ndarray):
        names = b"".join(field.encode().ljust(32, b"\0") for field in value)
        body = _element(6, struct.pack("<II", struct_class, 0)) + _element(5, struct.pack("<ii", 1, 1))
        body += name_element + struct.pack("<HHi", 5, 4, 32) + _element(1, names)
        return _element(14, body + b"".join(_array("", held) for held in value.values()))
    array_class, values_type = _CLASSES[value.dtype]
    body = _element(6, struct.pack("<II", array_class, 0))
    body += _element(5, struct.pack(f"<{value.ndim}i", *value.shape)) + name_element
    return _element(14, body + _element(values_type, value.tobytes(order="F")))


def mat_bytes(packed: bool = True, **variables: np.ndarray | Mapping[str, np.ndarray]) -> bytes:
    """A .mat file of `variables`: numbers, or structs of 1x1."""
    header = b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x01IM"
    elements = [_array(name, value) for name, value in variables.items()]
    if packed:
        pieces = [zlib.compress(element) for element in elements]
        elements = [struct.pack("<II", 15, len(piece)) + piece for piece in pieces]
    return header + b"".join(elements)


def svhn_bytes(num: int, seed: int, **changes) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A file of SVHN, and what it holds: images uint8 [N,3,32,32], labels 0..9 [N]."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, num)
    labels[0] = 0
    variables = {
        "X": images.transpose(2, 3, 1, 0),
        "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8),
    }
    return mat_bytes(**(variables | changes)), images, labels


def affnist_bytes(num: int, seed: int, **changes) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A batch of affNIST, and what it holds: images uint8 [N,40,40], labels 0..9 [N]."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, 40, 40), dtype=np.uint8)
    labels = rng.integers(0, 10, num)
    held = {
        "affine_matrix": rng.random((6, num)),
        "image": images.reshape(num, 1600).T,
        "label_one_of_n": np.eye(10)[labels].T,
        "label_int": labels[None].astype(np.float64),
    }
    return mat_bytes(affNISTdata=held | changes), images, labels


def zip_bytes(members: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def emnist_files(part: str, first_label: int, num_classes: int) -> tuple[dict[str, bytes], dict]:
    """The idx files of a part, 4 images a class for training and 2 for testing; and their images, upright."""
    rng = np.random.default_rng(num_classes)
    files, held = {}, {}
    for split, count in (("train", 4), ("test", 2)):
        labels = rng.permutation(np.repeat(np.arange(num_classes, dtype=np.uint8), count))
        images = rng.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        held[split] = images, labels
        transposed = np.ascontiguousarray(images.transpose(0, 2, 1))
        files[f"emnist-{part}-{split}-images-idx3-ubyte"] = idx_bytes(transposed)
        files[f"emnist-{part}-{split}-labels-idx1-ubyte"] = idx_bytes(labels + np.uint8(first_label))
    return files, held


def emnist_archive(files: Mapping[str, bytes], texts: Mapping[str, bytes]) -> bytes:
    """gzip.zip as it is published: every file packed by gzip in a folder gzip, the mappings as text."""
    members = {f"gzip/{name}.gz": gzip.compress(data) for name, data in files.items()}
    return zip_bytes(members | {f"gzip/{name}": data for name, data in texts.items()})
