"""Write a split as block tar shards: webdataset's format, deterministic bytes, arrays readable in place.

One member per image reads 7,500 images/s through webdataset and blocks read millions.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xxhash

from capsdist.data.format.classes import check_class_names
from capsdist.data.format.folder import SplitFolder, open_folder
from capsdist.data.format.index import Index, Shard, check_image_shape
from capsdist.data.format.layout import block_sizes, npy_header, place_blocks
from capsdist.errors import DataError

__all__ = ["npy_bytes", "write_split"]

_MAX_SIZE = 1 << 31  # images of a block or shard


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
        DataError: wrong shapes or dtypes, a label out of range, names of classes that are empty or not
            unique, a size below 1, or a folder that cannot be written.
    """
    check_class_names(classes)
    _check_arrays(images, labels, len(classes))
    _check_size("block_size", block_size)
    _check_size("shard_size", shard_size)
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    check_image_shape(shape)
    index = Index(shape, tuple(classes), int(block_size), ())
    place = open_folder(folder)
    with place.packing():
        shards = _write_shards(place, index, images, labels, int(shard_size), resume)
        index = replace(index, shards=shards).with_digest()
        place.publish(shards, index.to_json())
    return index


def _write_shards(
    place: SplitFolder, index: Index, images: np.ndarray, labels: np.ndarray, shard_size: int, resume: bool
) -> tuple[Shard, ...]:
    """Write the shards of a split of `index`'s shape and return what the index says of them."""
    shards: list[Shard] = []
    for start in range(0, len(images), shard_size):
        part = slice(start, start + shard_size)
        first_block = len(shards) * -(-shard_size // index.block_size)
        blocks, size_bytes = place_blocks(len(images[part]), index.block_size, index.image_bytes)
        data = _shard_bytes(images[part], labels[part], index.block_size, first_block)
        assert len(data) == size_bytes, "the layout of a shard is not what TarWriter writes"
        shard = Shard(
            name=f"shard-{len(shards):05d}.tar",
            size_bytes=size_bytes,
            num_samples=len(images[part]),
            xxh3_128=xxhash.xxh3_128_hexdigest(data),
            sha256=hashlib.sha256(data).hexdigest(),
            blocks=blocks,
        )
        if not (resume and place.holds(shard)):
            place.put(shard, data)
        shards.append(shard)
    return tuple(shards)


def npy_bytes(array: np.ndarray) -> bytes:
    """Return `array` in numpy's .npy format 1.0, its header padded so that the data starts at byte 512."""
    return npy_header(array.dtype, array.shape) + np.ascontiguousarray(array).tobytes()


def _check_arrays(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    for name, array in (("images", images), ("labels", labels)):
        if not isinstance(array, np.ndarray):
            raise DataError(f"{name} are a {type(array).__name__}; give a numpy array, see numpy.asarray")
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


def _check_size(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= _MAX_SIZE:
        raise DataError(f"{name}={value!r}: is not a number of images; give 1 to {_MAX_SIZE:,}")


def _shard_bytes(images: np.ndarray, labels: np.ndarray, block_size: int, first_block: int) -> bytes:
    from webdataset.writer import TarWriter  # late: only writing needs it

    stream, start = io.BytesIO(), 0
    # An integer mtime keeps every header plain USTAR: webdataset's own float would force a PAX record.
    with TarWriter(stream, encoder=False, mtime=0, user="", group="") as writer:
        for number, size in enumerate(block_sizes(len(images), block_size), first_block):
            part = slice(start, start + size)
            # TarWriter sorts a sample's members, x.npy first; a member is a 512-byte header and its data.
            x, y = npy_bytes(images[part]), npy_bytes(labels[part].astype("<i8"))
            writer.write({"__key__": f"{number:06d}", "x.npy": x, "y.npy": y})
            start += size
    return stream.getvalue()
