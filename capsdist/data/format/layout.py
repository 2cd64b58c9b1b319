"""Format 1 of a shard: where its arrays lie; one answer for the writer and for whoever checks an index.

A shard `shard-NNNNN.tar` is plain USTAR with members in pairs `KKKKKK.x.npy`, `KKKKKK.y.npy`, K the block:

- x is uint8 [n, C, H, W] in C order; y little-endian int64 [n], labels in 0 .. classes - 1;
- every block has `block_size` samples, the last one of a shard may have fewer; likewise shards of a split;
- every header has time 0, mode 0444, empty owner names, no extended record, so that member data starts 512
  bytes behind it; members are .npy files of format 1.0 whose header is padded with spaces to 512 bytes, so
  that the array itself starts on a multiple of 512 and can be used in place;
- the file ends with zeros up to a multiple of 10,240 bytes.

The id of a sample is its place in storage order: shards as the index lists them, blocks of a shard in order.
Sample i of a shard is in block i // block_size, at images_offset_bytes + (i % block_size) * C*H*W. A shard's
bytes are a function of its arrays, so offsets in an index are compared with what they must be.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict, NonNegativeInt, PositiveInt

__all__ = ["ALIGNMENT", "Block", "block_sizes", "is_npy_header", "npy_header", "place_blocks"]

ALIGNMENT = 512
"""Of tar members and of the arrays inside them, in bytes; a tar header and an .npy header have this size."""

_RECORD = 10_240  # a tar file's size is a multiple of it
_NPY_MAGIC = b"\x93NUMPY\x01\x00"


@dataclass(frozen=True)
class Block:
    """Where one block's pixels and labels lie inside its shard: byte offsets of the raw arrays."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    num_samples: PositiveInt
    images_offset_bytes: NonNegativeInt
    labels_offset_bytes: NonNegativeInt


def block_sizes(num_samples: int, block_size: int) -> Iterator[int]:
    """Yield the samples of each block of a shard: all `block_size`, but the last may have fewer."""
    for start in range(0, num_samples, block_size):
        yield min(block_size, num_samples - start)


def place_blocks(num_samples: int, block_size: int, image_bytes: int) -> tuple[tuple[Block, ...], int]:
    """Return the blocks of a shard with `num_samples` images of `image_bytes`, and the size of its file."""
    blocks: list[Block] = []
    end = 0
    for num in block_sizes(num_samples, block_size):
        images = end + 2 * ALIGNMENT
        labels = images + _padded(num * image_bytes) + 2 * ALIGNMENT
        blocks.append(Block(num, images, labels))
        end = labels + _padded(8 * num)
    return tuple(blocks), -(-(end + 2 * ALIGNMENT) // _RECORD) * _RECORD


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Return the header of numpy's .npy format 1.0, padded so that the array starts at byte 512."""
    descr = np.lib.format.dtype_to_descr(dtype)
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    room = ALIGNMENT - len(_NPY_MAGIC) - 2
    return _NPY_MAGIC + room.to_bytes(2, "little") + text.encode().ljust(room - 1) + b"\n"


def is_npy_header(header: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    """Return whether `header` declares an array of `dtype` and `shape` in C order that starts behind it."""
    if header == npy_header(dtype, shape):
        return True
    stream = io.BytesIO(header)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            return False
        found = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, SyntaxError, TypeError):  # what numpy raises for damaged headers
        return False
    return found == (shape, False, dtype) and stream.tell() == len(header)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
