"""The images of one rank in one step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Batch", "Partner"]


@dataclass(frozen=True)
class Partner:
    """The samples at the next places of the step over all ranks, after the last the first; for `Mixup`.

    images uint8 [b,C,H,W]; labels int64 [b]; sample_ids int64 [b]; epoch: of all samples, or int64 [b]. What
    stands beside padding is any sample of the step.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    epoch: int | Tensor = 0


@dataclass(frozen=True)
class Batch:
    """One rank's part of one step.

    images uint8 [b,C,H,W]; labels int64 [b], or [b,K] for up to K classes an image, -1 where there are fewer,
    or float32 [b,J] once they are mixed; weights float32 [b]: 1 for a real sample, 0 for padding; sample_ids
    int64 [b]; num_global: real samples of the step over all ranks; epoch: of all samples, or int64 [b] in a
    step that has samples of several epochs; partner: what the images are mixed with, if anything; parts: of
    recipes, where a decoder draws them, the image of each label alone, uint8 [b,K,C,H,W], or float32 once
    they are transformed. known_shifts, shifted: where a network draws a shifted copy of each image, float32
    [b,2], pixels to the right and down, and the copies, float32 [b,C,H,W], once images are transformed.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor
    sample_ids: Tensor
    num_global: int
    epoch: int | Tensor = 0
    partner: Partner | None = None
    parts: Tensor | None = None
    known_shifts: Tensor | None = None
    shifted: Tensor | None = None

    @property
    def told(self) -> Tensor:
        """What a network in training takes beside the images: the labels, or the known shifts."""
        return self.labels if self.known_shifts is None else self.known_shifts

    def drawn(self, images: Tensor) -> Tensor:
        """Return what a decoder has to draw: the transformed `images`, or their parts or shifted copies."""
        others = self.parts if self.shifted is None else self.shifted
        return images if others is None else others

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`; from pinned memory the copy does not wait."""
        partner = _moved(self.partner, device) if self.partner else None
        return replace(_moved(self, device), partner=partner)


_Samples = TypeVar("_Samples", Batch, Partner)


def _moved(samples: _Samples, device: torch.device | str) -> _Samples:
    tensors = {name: value for name, value in vars(samples).items() if isinstance(value, Tensor)}
    return replace(samples, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})
