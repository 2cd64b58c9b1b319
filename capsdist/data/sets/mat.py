"""Read variables of MATLAB's .mat files of version 5, which scipy parses.

scipy's parser can crash the process on a damaged file, so that callers compare a file's checksum first: then
it is the published one, and unpacks to what is known of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from capsdist.errors import DataError

__all__ = ["load_mat", "mat_shapes"]


def mat_shapes(file: BinaryIO, where: object) -> dict[str, tuple[int, ...]]:
    """Return the shape of every variable of an open file, reading no values.

    Raises:
        DataError: a file that scipy cannot read; `where` names it.
    """
    from scipy.io import whosmat  # late: only two sets need it

    try:
        return {name: tuple(map(int, shape)) for name, shape, _ in whosmat(file)}
    except Exception as error:  # another format raises nearly anything
        raise _unreadable(where, error) from None


def load_mat(file: BinaryIO, names: Sequence[str], where: object) -> dict[str, np.ndarray]:
    """Return the variables `names` of an open file: arrays in Fortran order, structs as scipy has them.

    Raises:
        DataError: a file that scipy cannot read, or that lacks a variable; `where` names it.
    """
    from scipy.io import loadmat

    try:
        found = loadmat(file, variable_names=list(names))
    except Exception as error:  # another format raises nearly anything
        raise _unreadable(where, error) from None
    for name in names:
        if name not in found:
            raise DataError(f"{where}: has no variable {name}; get the original")
    return {name: found[name] for name in names}


def _unreadable(where: object, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{where}: cannot be read as a .mat file ({reason}); get the original")
