"""Mixup: an image becomes the weighted mean of itself and another, and so do their classes.

Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization": weights from Beta(alpha, alpha). There
the partner is drawn from the batch; here it is the sample at the next place of the step, over all ranks,
whose order is random already: so neither ranks nor microbatches change the result.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from capsdist.data.batch import Batch
from capsdist.data.transforms.random_numbers import Draw, Draws
from capsdist.data.transforms.transform import Transform
from capsdist.ops.targets import class_mask

__all__ = ["Mixup", "soft_targets"]

_KNOTS = 4096


@dataclass(frozen=True)
class Mixup:
    """Mix each image of a batch with its partner.

    alpha: of the weights' distribution Beta(alpha, alpha), above 0: uniform at 1, below mostly near 0 and 1.
    num_classes: J.
    """

    alpha: float
    num_classes: int

    def __call__(self, batch: Batch, images: Tensor, transform: Transform, seed: int) -> tuple[Batch, Tensor]:
        """Return the batch with soft targets float32 [b, J] for labels, and the mixed images.

        batch: with partners, on the device of images float32 [b, C, H, W], which are the batch's after
        `transform`. A partner is transformed as in its own place, by its own sample id.
        """
        partner = batch.partner
        assert partner is not None
        others = transform(partner.images, partner.sample_ids, seed, partner.epoch)
        weights = self.weights(batch.sample_ids, seed, batch.epoch)
        targets = soft_targets(batch.labels, partner.labels, weights, self.num_classes)
        return replace(batch, labels=targets), torch.lerp(others, images, weights[:, None, None, None])

    def weights(self, sample_ids: Tensor, seed: int, epoch: int | Tensor) -> Tensor:
        """Return the weight of each sample's own image, float32 [b] in [0, 1].

        The inverse of the distribution function at a uniform number, from a table with linear interpolation:
        within 2e-5 for alpha from 0.01 to 1,000, within 1e-6 from 0.05 to 100.
        """
        number = Draws(sample_ids, seed, epoch).uniform(Draw.MIXUP)
        probabilities, weights = _table(self.alpha, number.device)
        lower = torch.minimum(number, 1 - number)  # the density is symmetric about 1/2
        above = torch.searchsorted(probabilities, lower, right=True).clamp(max=len(probabilities) - 1)
        start, end = probabilities[above - 1], probabilities[above]
        found = torch.lerp(weights[above - 1], weights[above], (lower - start) / (end - start))
        return torch.where(number < 0.5, found, 1 - found).float()


def soft_targets(labels: Tensor, partner_labels: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """Return the shares of the classes, float32 [b, J]: weight of the own class, the rest of the partner's.

    labels, partner_labels: int64 [b], or sets [b, K]; weights: float32 [b]. Of single labels each row sums
    to 1. Losses that are linear in the targets, as margin loss and cross-entropy, are the weighted means of
    the losses of both labels.
    """
    own, partner = (class_mask(each, num_classes).float() for each in (labels, partner_labels))
    return weights[:, None] * own + (1 - weights[:, None]) * partner


@functools.cache  # for good: a CUDA graph may hold its address
def _table(alpha: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the distribution function of Beta(alpha, alpha) at knots from 0 to 1/2, and these; float64.

    With x = sin^2(p / 2) the density is that of sin(p)^(2 alpha - 1) over p in [0, pi / 2]; below alpha = 1
    p = t^(1 / (2 alpha)) takes the pole at 0 away. The trapezoidal rule adds it up over knots even in t.
    """
    power = 2 * alpha if alpha < 1 else 1.0
    angles = (np.linspace(0, 1, _KNOTS + 1) * (np.pi / 2) ** power) ** (1 / power)
    density = np.sinc(angles / np.pi) ** (2 * alpha - 1) if alpha < 1 else np.sin(angles) ** (2 * alpha - 1)
    summed = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    columns = summed * (0.5 / summed[-1]), np.sin(angles / 2) ** 2
    probabilities, weights = (torch.from_numpy(column).to(device) for column in columns)
    return probabilities, weights
