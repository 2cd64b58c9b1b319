"""Write a split as block tar shards: webdataset's format, deterministic bytes, arrays readable in place.

Ours, because one member an image reads 7,500 images/s through webdataset and blocks read millions.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence

import numpy as np
import xxhash

from capsdist.data.classes import check_class_names
from capsdist.data.folder import open_folder
from capsdist.data.index import Block, Index, Shard
from capsdist.errors import DataError

__all__ = ["npy_bytes", "write_split"]

_ALIGNMENT = 512  # of tar members and of the arrays inside them
_NPY_MAGIC = b"\x93NUMPY\x01\x00"


def write_split(
    folder: str | os.PathLike[str],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: Sequence[str],
    block_size: int = 1024,
    shard_size: int = 8192,
    resume: bool = True,
) -> Index:
    """Write images and labels as the split in `folder`, a path or s3:// URL, and return its index.

    images uint8 [N,C,H,W], labels int64 [N]. The bytes depend on the arguments only. An index that is
    already there is withdrawn first and the new one published last: by a rename, or on S3 on condition that
    nobody else has published one meanwhile. With `resume`, shards that are already there are left alone:
    those with the same content, on S3 those written with the same sha256.

    Raises:
        DataError: wrong shapes or dtypes, a label out of range, or a folder that cannot be written.
    """
    check_class_names(classes)
    _check_arrays(images, labels, len(classes))
    place = open_folder(folder)
    place.begin()
    shards: list[Shard] = []
    for start in range(0, len(images), shard_size):
        part = slice(start, start + shard_size)
        first_block = len(shards) * -(-shard_size // block_size)
        data, blocks = _shard_bytes(images[part], labels[part], block_size, first_block)
        shard = Shard(
            name=f"shard-{len(shards):05d}.tar",
            size_bytes=len(data),
            num_samples=len(images[part]),
            xxh3_128=xxhash.xxh3_128_hexdigest(data),
            sha256=hashlib.sha256(data).hexdigest(),
            blocks=blocks,
        )
        if not (resume and place.holds(shard)):
            place.put(shard, data)
        shards.append(shard)
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    index = Index(shape, tuple(classes), block_size, tuple(shards)).with_digest()
    place.publish(shards, index.to_json())
    return index


def npy_bytes(array: np.ndarray) -> bytes:
    """Return `array` in numpy's .npy format 1.0, its header padded so that the data starts at byte 512."""
    descr = np.lib.format.dtype_to_descr(array.dtype)
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {array.shape!r}, }}"
    room = _ALIGNMENT - len(_NPY_MAGIC) - 2
    padded = header.encode().ljust(room - 1) + b"\n"
    return _NPY_MAGIC + room.to_bytes(2, "little") + padded + np.ascontiguousarray(array).tobytes()


def _check_arrays(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise DataError(f"images are {images.dtype} {list(images.shape)}; give uint8 [N,C,H,W] with N >= 1")
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise DataError(f"labels are {labels.dtype} {list(labels.shape)}; give int64 [{len(images)}]")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise DataError(
            f"label {labels[wrong[0]]} of sample {wrong[0]} is outside 0..{num_classes - 1}; "
            "correct the label or name all classes"
        )


def _shard_bytes(
    images: np.ndarray, labels: np.ndarray, block_size: int, first_block: int
) -> tuple[bytes, tuple[Block, ...]]:
    from webdataset.writer import TarWriter  # late: only writing needs it

    stream, blocks = io.BytesIO(), []
    # An integer mtime keeps every header plain USTAR: webdataset's own float would force a PAX record.
    with TarWriter(stream, encoder=False, mtime=0, user="", group="") as writer:
        for start in range(0, len(images), block_size):
            part = slice(start, start + block_size)
            x, y = npy_bytes(images[part]), npy_bytes(labels[part].astype("<i8"))
            # TarWriter sorts a sample's members, x.npy first; a member is a 512-byte header and its data.
            begin = blocks[-1].labels_offset_bytes + _padded(8 * blocks[-1].num_samples) if blocks else 0
            images_offset = begin + 2 * _ALIGNMENT
            labels_offset = begin + _ALIGNMENT + _padded(len(x)) + 2 * _ALIGNMENT
            blocks.append(Block(len(images[part]), images_offset, labels_offset))
            writer.write({"__key__": f"{first_block + len(blocks) - 1:06d}", "x.npy": x, "y.npy": y})
    return stream.getvalue(), tuple(blocks)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
