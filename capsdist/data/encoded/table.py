"""The table of a tar file: where each encoded image lies, its checksum, and the other fields of the sample.

A table is an .npy file with a structured array, one row a sample, in the order of the tar file: `offset` and
`size` in bytes of the image file inside the tar file, `xxh3_64` of its bytes, and every other field by name.
So no tar header is parsed while training.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from capsdist.data.format.fields import Field
from capsdist.errors import DataError

__all__ = ["packed_table", "read_table", "table_bytes", "table_dtype"]


def table_dtype(fields: Sequence[Field]) -> np.dtype:
    """Return the type of a row of a table with the other `fields` of a sample."""
    own = [("offset", "<i8"), ("size", "<i4"), ("xxh3_64", "<u8")]
    return np.dtype([*own, *((field.name, field.dtype, field.shape) for field in fields)])


def table_bytes(fields: Sequence[Field], num_samples: int) -> int:
    """Return the size in bytes of a stored table of `num_samples` samples."""
    dtype = table_dtype(fields)
    return len(_header(dtype, num_samples)) + num_samples * dtype.itemsize


def packed_table(rows: np.ndarray) -> bytes:
    """Return a table as it is stored."""
    return _header(rows.dtype, len(rows)) + rows.tobytes()


def read_table(content: bytes, fields: Sequence[Field], num_samples: int, size_bytes: int) -> np.ndarray:
    """Return the rows [num_samples] of the stored table of a tar file of `size_bytes`.

    Only the one header that such a table has is accepted, so that none is interpreted.

    Raises:
        DataError: it is not such a table, or an image lies outside the file.
    """
    dtype = table_dtype(fields)
    header = _header(dtype, num_samples)
    if not content.startswith(header) or len(content) != len(header) + num_samples * dtype.itemsize:
        raise DataError(f"is no table of {num_samples} samples with the fields of its index")
    rows = np.frombuffer(content, dtype, offset=len(header))
    offsets, sizes = rows["offset"], rows["size"].astype(np.int64)  # a tar file may have more than 2 GiB
    inside = (offsets >= 0) & (sizes > 0) & (offsets <= size_bytes - sizes)
    if not inside.all():
        raise DataError(f"has sample {int(inside.argmin())} outside its tar file")
    return rows


def _header(dtype: np.dtype, num_samples: int) -> bytes:
    stream = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": (num_samples,)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()
