"""Decide whether the fused backend can be used, without importing Triton."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = ["fused_refusal"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Tensor cores that multiply bf16: from the A100 on.
MIN_CAPABILITY = (8, 0)


def fused_refusal(child_poses: Tensor, packed_weights: Tensor, *, interpreter: bool = False) -> str | None:
    """Return why the fused backend cannot route these operands here, in one line; None if it can.

    Args:
        child_poses: [B, I, D].
        packed_weights: [J, E, D, I].
        interpreter: accept a CPU where Triton interprets kernels (TRITON_INTERPRET=1). That is for tests,
            thousands of times slower than any other backend.
    """
    if child_poses.dtype not in DTYPES or packed_weights.dtype not in DTYPES:
        dtypes = f"child_poses are {child_poses.dtype}, weights {packed_weights.dtype}"
        return f"{dtypes}; it takes float32, bfloat16 and float16"
    device = child_poses.device
    interpreted = device.type == "cpu" and interpreter and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        where = f"the operands are on {device.type}; it runs on an NVIDIA GPU"
        return f"{where}, or for tests with TRITON_INTERPRET=1" if interpreter else where
    if find_spec("triton") is None:
        return "Triton is not installed; a CUDA build of torch brings it along"
    return None if interpreted else _refusal_of(device)


@cache
def _refusal_of(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return "this torch is for AMD GPUs; it has been made for NVIDIA's"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"{name} has compute capability {capability}; it takes {MIN_CAPABILITY} and later"
    return None
