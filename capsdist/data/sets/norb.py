"""Read the binary matrix files of NORB (LeCun, Huang, Bottou 2004), whose names end with .mat as well.

Format, all little endian: magic number uint32 (0x1E3D4C55: uint8, 0x1E3D4C54: int32), number of dimensions
int32, at least three dimensions int32 (those too many are 1), then the values in C order.
"""

from __future__ import annotations

import struct
from math import prod

import numpy as np

from capsdist.errors import DataError

__all__ = ["parse_matrix"]

_DTYPES = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}
_MAX_DIMENSIONS = 8


def parse_matrix(data: bytes, where: object) -> np.ndarray:
    """Return the array of an uncompressed matrix file, uint8 or int32; `where` names it in errors.

    Raises:
        DataError: not such a file, or more or fewer values than its header says.
    """
    magic, ndim = struct.unpack_from("<Ii", data) if len(data) >= 8 else (0, 0)
    if magic not in _DTYPES or not 1 <= ndim <= _MAX_DIMENSIONS:
        raise DataError(
            f"{where}: starts with {data[:8]!r}, not a matrix of uint8 or int32; get the original"
        )
    dtype, start = _DTYPES[magic], 8 + 4 * max(ndim, 3)
    shape = struct.unpack_from(f"<{ndim}i", data, 8) if len(data) >= start else ()
    if len(shape) != ndim or min(shape) < 0 or len(data) - start != prod(shape) * dtype.itemsize:
        raise DataError(f"{where}: has {len(data)} bytes, its header says {shape}; get the original")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)
