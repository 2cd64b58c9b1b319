"""Where the arrays of a shard lie; one answer for the writer and for whoever checks an index.

A shard `shard-NNNNN.tar` is plain USTAR. A block has one member a field, in the order of the names:

- version 2: `KEY.NAME.npy`, or `KEY.NAME.npy.zst` where the split is compressed (one zstd frame); KEY is the
  number of the shard in 5 digits and that of the block in 6;
- version 1: `KEY.x.npy` (image) and `KEY.y.npy` (label); KEY is the number of the block in the split;
- a member is an .npy file of format 1.0 with an array [n, *shape] in C order, little-endian, whose header is
  padded with spaces to 512 bytes, so that the array of a member that is not compressed starts on a multiple
  of 512 and can be used in place;
- every block has `block_size` samples, the last one of a shard may have fewer; likewise shards of a split;
- every tar header has time 0, mode 0444, empty owner names, no extended record, so that member data starts
  512 bytes behind it; the file ends with zeros up to a multiple of 10,240 bytes.

The id of a sample is its place in storage order: shards as the index lists them, blocks of a shard in order.
Sizes of members that are not compressed follow from the fields, those of compressed ones stand in the index;
all places follow from the sizes. So an index leads to no bytes but those of its own arrays.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, PositiveInt
from pydantic import Field as Limits

from capsdist.data.format.fields import Field

__all__ = [
    "ALIGNMENT",
    "Block",
    "Span",
    "array_bytes",
    "block_sizes",
    "file_size",
    "is_npy_header",
    "npy_header",
    "spans",
]

ALIGNMENT = 512
"""Of tar members and of the arrays inside them, in bytes; a tar header and an .npy header have this size."""

_RECORD = 10_240  # a tar file's size is a multiple of it
_NPY_MAGIC = b"\x93NUMPY\x01\x00"


@dataclass(frozen=True)
class Block:
    """One block of a shard: its samples, the checksum of its bytes, headers included, and the sizes of its
    members, in the order of the fields, where they are compressed. Version 1 has no checksums of blocks."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    num_samples: PositiveInt
    xxh3_128: Annotated[str, Limits(pattern="^([0-9a-f]{32})?$")] = ""
    stored_bytes: tuple[PositiveInt, ...] = ()


@dataclass(frozen=True)
class Span:
    """Where a block lies in its shard, in bytes: begin and end, headers included, and for each field, in
    order, the start and size of the data of its member."""

    begin: int
    end: int
    starts: tuple[int, ...]
    sizes: tuple[int, ...]


def block_sizes(num_samples: int, block_size: int) -> Iterator[int]:
    """Yield the samples of each block of a shard: all `block_size`, but the last may have fewer."""
    for start in range(0, num_samples, block_size):
        yield min(block_size, num_samples - start)


def array_bytes(field: Field, num_samples: int) -> int:
    """Return the size of the .npy file with `num_samples` samples of `field`."""
    return ALIGNMENT + num_samples * field.num_bytes


def spans(blocks: Sequence[Block], fields: Sequence[Field]) -> tuple[Span, ...]:
    """Return where each of `blocks` of one shard lies."""
    found: list[Span] = []
    end = 0
    for block in blocks:
        begin, starts = end, []
        sizes = block.stored_bytes or tuple(array_bytes(field, block.num_samples) for field in fields)
        for size in sizes:
            starts.append(end + ALIGNMENT)
            end += ALIGNMENT + _padded(size)
        found.append(Span(begin, end, tuple(starts), sizes))
    return tuple(found)


def file_size(content_bytes: int) -> int:
    """Return the size of a tar file whose members, with their headers, have `content_bytes`."""
    return -(-(content_bytes + 2 * ALIGNMENT) // _RECORD) * _RECORD


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
