"""Sums of the metrics between two rows: they stay on the device, so that no step waits for it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from capsdist.train.step import error_percents, metric_names

if TYPE_CHECKING:  # a machine with torch alone runs steps
    from capsdist.config import Family

__all__ = ["Window", "WindowMeans"]


@dataclass(frozen=True)
class WindowMeans:
    """Means over the images of a window, over all ranks.

    losses: by name; errors: see `error_percents`; grad_norm: of the last step; norms: sum of the norms of all
    steps and ranks, so that all ranks find the same not finite; num_images, num_steps; seconds.
    """

    losses: dict[str, float]
    errors: dict[str, float]
    grad_norm: float
    norms: float
    num_images: int
    num_steps: int
    seconds: float


class Window:
    """Add the sums of each step; `close` returns their means. A new window is open."""

    def __init__(self, family: Family, device: torch.device, world_size: int, num_labels: int = 1) -> None:
        self._family, self._world_size = family, world_size
        self._names = metric_names(family, num_labels)
        self._sums = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        self._grad_norm = torch.zeros(())
        self.num_steps = 0
        self._began = time.perf_counter()

    def add(self, sums: Tensor, grad_norm: Tensor) -> None:
        """Add what `train_step` returns."""
        self._sums += sums
        self._grad_norm = grad_norm
        self.num_steps += 1

    def close(self) -> WindowMeans:
        """Return the means; waits for the device, and for the other ranks. Collective."""
        values = torch.cat([self._sums, self._grad_norm.to(self._sums).view(1)])
        if self._world_size > 1:
            dist.all_reduce(values)
        *sums, norms = values.tolist()
        total = dict(zip(self._names, sums, strict=True))
        num = total["num_images"]
        return WindowMeans(
            losses={name: total[name] / num for name in self._family.loss_names},
            errors=error_percents(total),
            grad_norm=float(self._grad_norm),
            norms=norms,
            num_images=int(num),
            num_steps=self.num_steps,
            seconds=time.perf_counter() - self._began,
        )
