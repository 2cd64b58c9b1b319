"""Checks of the arguments of routing; a refusal is one line.

What they must be together is asked by each algorithm.
"""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.ops.checks import check_tensor

__all__ = ["check_dims", "check_flag", "check_kind", "check_name", "is_count", "is_real", "one_of"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_dims(name: str, tensor: Tensor, letters: str, num_dims: int) -> None:
    """Raise ShapeError unless it is a tensor of so many dimensions; letters say what they are."""
    check_tensor(name, tensor)
    if tensor.dim() != num_dims:
        raise ShapeError(f"{name} has shape {list(tensor.shape)}; pass {letters}, {num_dims} dimensions")


def check_kind(name: str, tensor: Tensor, child_poses: Tensor) -> None:
    """Raise ShapeError for a dtype or device that cannot be, or does not go with that of child_poses."""
    check_tensor(name, tensor)
    if tensor.dtype not in DTYPES:
        raise ShapeError(f"{name} has dtype {tensor.dtype}; make it float32, float64, bfloat16 or float16")
    if (tensor.dtype == torch.float64) != (child_poses.dtype == torch.float64):
        raise ShapeError(
            f"{name} has dtype {tensor.dtype} but child_poses {child_poses.dtype}; "
            "make all of them float64, or none"
        )
    if tensor.device != child_poses.device:
        raise ShapeError(
            f"{name} is on {tensor.device} but child_poses on {child_poses.device}; use one device"
        )


def is_count(number: Any) -> bool:
    """Say whether a number is an integer of any type, numpy's too, and at least 1."""
    if isinstance(number, bool):
        return False
    try:
        return index(number) >= 1
    except TypeError:
        return False


def is_real(number: Any) -> bool:
    """Say whether a number is an integer or a floating number, numpy's too, and no truth value."""
    return isinstance(number, (int, float, np.integer, np.floating)) and not isinstance(number, bool)


def check_flag(name: str, value: object) -> None:
    """Raise ShapeError unless a value is a truth value, numpy's too."""
    if not isinstance(value, (bool, np.bool_)):
        raise ShapeError(f"{name}={value!r} must be True or False")


def check_name(name: str, value: object, names: tuple[str, ...]) -> None:
    """Raise ShapeError unless a value is one of several names."""
    if value not in names:
        raise ShapeError(f"{name}={value!r} is unknown; choose {one_of(names)}")


def one_of(names: tuple[str, ...]) -> str:
    """Return names as a list for a sentence: 'a', 'b' or 'c'."""
    *most, last = map(repr, names)
    return f"{', '.join(most)} or {last}"
