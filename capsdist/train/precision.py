"""Numeric precision: the default of a device, autocast, and loss scaling for fp16.

Weights, gradients and optimizer state are fp32 in every engine; lower precision enters by autocast only,
so that all engines compute the same numbers. Routing sums in fp32 by itself (`capsdist.routing`).
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from capsdist.errors import ConfigError, Problem

__all__ = ["LossScale", "Precision", "autocast", "cpu_multiplies_bf16", "resolve_precision"]

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_BF16_FLAGS = {"amx_bf16", "avx512_bf16"}


def cpu_multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Say whether this processor has bf16 products in hardware, by the flags that Linux reports.

    Without them a bf16 product is emulated, several hundred times slower than fp32; where the flags cannot
    be read the answer is no.
    """
    if not cpuinfo.exists():
        return False
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return not _BF16_FLAGS.isdisjoint(line.split())
    return False


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Return the precision that `name` (fp32, bf16, fp16 or auto) means on `device`.

    auto: on a GPU bf16 where it has it, else fp16; on a CPU bf16 where the processor multiplies it in
    hardware, else fp32.

    Raises:
        ConfigError: fp16 on a CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise ConfigError([Problem("train.precision", name, "is for GPUs", "use fp32 or bf16 on a CPU")])
    if name != "auto":
        return name  # type: ignore[return-value]  # the configuration allows these names only
    if device.type == "cpu":
        return "bf16" if cpu_multiplies_bf16() else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a forward pass runs; none for fp32, so that float64 passes too."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


@dataclass
class LossScale:
    """Dynamic loss scale of fp16 by the rule of `torch.amp.GradScaler`, for an engine that cannot use it.

    The loss is multiplied by `scale` before the backward pass, the gradients are divided by it after it. A
    step whose gradients are not finite is skipped and halves the scale; `interval` good steps in a row
    double it.
    """

    scale: float = 65536.0
    growth_tracker: int = 0
    interval: int = 2000

    def update(self, *, overflow: bool) -> None:
        """Take note of a step: skipped for `overflow`, or done."""
        if overflow:
            self.scale, self.growth_tracker = self.scale * 0.5, 0
            return
        self.growth_tracker += 1
        if self.growth_tracker == self.interval:
            self.scale, self.growth_tracker = self.scale * 2.0, 0
