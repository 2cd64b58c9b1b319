"""Measure the ceilings of a device: the rates of a matrix product and of a copy, and their roofline."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from capsdist.bench.timer import time_side_by_side

__all__ = ["Ceilings", "check_place", "matrix_product", "measure_ceilings"]

_COPY_BYTES = 1 << 28  # well beyond every cache


@dataclass(frozen=True)
class Ceilings:
    """flop_per_s of a plain matrix product in one dtype; bytes_per_s of a copy, read and written together."""

    flop_per_s: float
    bytes_per_s: float

    def floor_s(self, flop: float, num_bytes: float) -> float:
        """Return the time that work of `flop` and `num_bytes` of traffic takes at least (roofline model).

        Williams, Waterman, Patterson, "Roofline: an insightful visual performance model" (CACM 2009).
        """
        return max(flop / self.flop_per_s, num_bytes / self.bytes_per_s)


def matrix_product(device: str, dtype: str = "float32") -> tuple[Callable[[], Tensor], float]:
    """Return a product of two square matrices as a call, and its FLOP: the machine's yardstick."""
    size = 2048 if torch.device(device).type == "cpu" else 8192
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, size, size, generator=generator).to(device, getattr(torch, dtype))
    return lambda: left @ right, 2.0 * size**3


def measure_ceilings(device: str, dtype: str = "float32", budget_s: float = 2.0) -> Ceilings:
    """Measure both ceilings of `device`, in a couple of seconds; medians."""
    product, flop = matrix_product(device, dtype)
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = time_side_by_side(
        {"product": product, "copy": lambda: target.copy_(source)}, budget_s=budget_s, max_rounds=20
    )
    return Ceilings(flop / times["product"].median_s, 2 * _COPY_BYTES / times["copy"].median_s)


def check_place(device: str, num_images: int, budget_s: float, *dtypes: str) -> None:
    """End in one line if `device` is not there, lacks a dtype, or there is nothing to measure.

    Args:
        device: cpu or cuda.
        num_images: of a batch.
        budget_s: seconds for times, 0 for one run of each.
        dtypes: by torch's names (float16) or those of precisions (fp16).

    Raises:
        SystemExit: with status 2, after that line on the error stream.
    """
    halves = {"float16", "fp16"}.intersection(dtypes)
    if device == "cuda" and not torch.cuda.is_available():
        problem = f"device='cuda': torch {torch.__version__} finds no NVIDIA GPU; use --device cpu"
    elif num_images < 1:
        problem = f"num_images={num_images} must be at least 1; raise --num-images"
    elif not 0 <= budget_s < math.inf:
        problem = f"budget_s={budget_s} must be a number of seconds; set --budget-s 40, say"
    elif not dtypes:
        problem = "there is no dtype to measure; give --dtypes one"
    elif device == "cpu" and halves:
        others = "float32 or bfloat16" if "float16" in halves else "fp32 or bf16"
        problem = f"{min(halves)} is for GPUs; on a CPU measure in {others}"
    else:
        return
    print(f"error: {problem}", file=sys.stderr)
    raise SystemExit(2)
