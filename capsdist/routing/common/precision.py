"""The precision of routing: float64 for float64, fp32 for all else, also under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["wide_dtype", "without_autocast"]


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype that tensors are computed in."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off where a tensor is, if there is one: "meta" has none."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
