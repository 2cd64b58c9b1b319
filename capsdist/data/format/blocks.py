"""Arrays of the blocks of a shard, and back: .npy members, compressed with zstd or not."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import zstandard

from capsdist.data.format.index import KEPT, Index
from capsdist.data.format.layout import ALIGNMENT, Span, array_bytes, is_npy_header, npy_header
from capsdist.errors import DataError

__all__ = ["check_labels", "npy_bytes", "packed_member", "read_block"]


class _Classes(Protocol):
    @property
    def num_classes(self) -> int: ...


_LEVEL = 3  # higher ones save a tenth and take ten times as long


def npy_bytes(array: np.ndarray) -> bytes:
    """Return `array` in numpy's .npy format 1.0, its header padded so that the data starts at byte 512."""
    return npy_header(array.dtype, array.shape) + np.ascontiguousarray(array).tobytes()


def packed_member(array: np.ndarray, index: Index) -> bytes:
    """Return the data of the member that holds `array` in a split of `index`."""
    content = npy_bytes(array)
    return zstandard.compress(content, _LEVEL) if index.compression == "zstd" else content


def read_block(
    content: np.ndarray, index: Index, span: Span, num_samples: int, path: str, remedy: str = ""
) -> dict[str, np.ndarray]:
    """Return the arrays of a block by field, [num_samples, ...] each; views of `content` where it can be.

    content: uint8, the bytes of the file at `path` from `span.begin` on. A compressed member is unpacked only
    if it says itself that it has the size that its field and the index give it.

    Raises:
        DataError: a member is not the array that the index says, or a label is not one of the classes.
    """
    arrays: dict[str, np.ndarray] = {}
    for field, start, size in zip(index.fields, span.starts, span.sizes, strict=True):
        member = content[start - span.begin : start - span.begin + size]
        if index.compression == "zstd":
            member = _unpacked(member, array_bytes(field, num_samples))
        shape = (num_samples, *field.shape)
        if not is_npy_header(member[:ALIGNMENT].tobytes(), field.numpy, shape):
            at = "" if index.compression == "zstd" else f" at byte {start + ALIGNMENT}"
            raise DataError(
                f"{path}: holds no {field.numpy} array of shape {list(shape)}{at}, as its index says; "
                f"{remedy or KEPT}"
            )
        arrays[field.name] = np.frombuffer(member, field.numpy, offset=ALIGNMENT).reshape(shape)
    return arrays


def check_labels(labels: np.ndarray, index: _Classes, first: int, remedy: str, where: str = "") -> None:
    """Check the labels of the samples from id `first` on, int64 [n] or [n, K].

    Raises:
        DataError: a label is not one of the classes; in [n, K], -1 stands for none. `where` is how it begins.
    """
    least = 0 if labels.ndim == 1 else -1
    wrong = np.argwhere((labels < least) | (labels >= index.num_classes))
    if wrong.size:
        place = tuple(wrong[0])
        raise DataError(
            f"{where}label {labels[place]} of sample {first + place[0]} is outside "
            f"0..{index.num_classes - 1}; {remedy}"
        )


def _unpacked(member: np.ndarray, size: int) -> np.ndarray:
    """Return what a zstd frame holds, uint8; empty if it does not state that this is `size` bytes."""
    try:
        if zstandard.frame_content_size(member.data) == size:
            content = zstandard.ZstdDecompressor().decompress(member.data, max_output_size=size)
            return np.frombuffer(content, np.uint8)
    except zstandard.ZstdError:
        pass
    return np.empty(0, np.uint8)
