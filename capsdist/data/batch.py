"""The images of one rank in one step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """One rank's part of one step.

    images uint8 [b,C,H,W]; labels int64 [b], or [b,K] for up to K classes an image, -1 where there are fewer;
    weights float32 [b]: 1 for a real sample, 0 for padding;
    sample_ids int64 [b]; num_global: real samples of the step over all ranks; epoch: of all samples, or int64
    [b] in a step that has samples of several epochs.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor
    sample_ids: Tensor
    num_global: int
    epoch: int | Tensor = 0

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`; from pinned memory the copy does not wait."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})
