"""A training step as the loop runs it, on images that lie on the device: what the benchmarks time.

Needs torch only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from capsdist.data.batch import Batch
from capsdist.data.transforms import with_shifted
from capsdist.train.engine.plain import PlainEngine
from capsdist.train.precision import Precision
from capsdist.train.step import train_step

if TYPE_CHECKING:
    from capsdist.config import Config, Family

__all__ = ["Step"]

_TOTAL_STEPS = 100_000


class Step:
    """Optimizer steps of `model` on one batch, on the device of `images`; each call is the next step.

    images: float [B, C, H, W]; labels: int64 [B], or [B, K] of several an image. Both may be changed in
    place between steps. A network that draws each label by itself has a copy of the image to draw for each,
    one that draws shifted images the shifted copies of those that there are at first.
    The schedule of the learning rate is that of a run of 100,000 steps.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        config: Config,
        *,
        images: Tensor,
        labels: Tensor,
        precision: Precision,
    ) -> None:
        self.family, self.config, self.images = family, config, images
        device = images.device
        self.engine = PlainEngine(
            model, config.optim, rank=0, world_size=1, device=device, precision=precision
        )
        ids, weights = torch.arange(len(images)), torch.ones(len(images))
        empty = torch.empty(0, dtype=torch.uint8)  # the step takes transformed images
        parts = None
        if config.model.draws_parts:
            parts = images[:, None].repeat(1, config.model.num_labels, 1, 1, 1)
        batch = Batch(empty, labels, weights, ids, len(images), parts=parts).to(device)
        limit = config.model.known_shift
        self.batch = with_shifted(batch, images, config.train.seed, limit) if limit else batch
        self._number = 0

    def __call__(self) -> Tensor:
        """Do a step; return its sums, see `train_step`."""
        where = self.engine, self.batch, self.images, self.family
        sums, _ = train_step(*where, self.config, self._number, _TOTAL_STEPS)
        self._number += 1
        return sums
