"""One optimizer step of a rank: microbatches, losses, gradients, update; and what it adds to the metrics.

Ranks may have slices of unequal size, padded to one size with weight 0, and the last step of an epoch is
short. The loss is therefore weighted by true counts: whatever the number of ranks and microbatches, the
gradient is that of ``sum_i weight_i * loss_i / num_global`` over all images i of the step.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from capsdist.config import Config
from capsdist.data import Batch
from capsdist.models import Output
from capsdist.ops import margin_loss, reconstruction_loss
from capsdist.train.engine.base import Engine
from capsdist.train.optim import learning_rate_at

__all__ = ["SUMS", "ImageLosses", "image_losses", "metric_sums", "microbatch_seed", "train_step"]

SUMS = ("loss", "margin_loss", "reconstruction_loss", "num_wrong", "num_images")
"""What `metric_sums` adds up, in this order."""


class ImageLosses(NamedTuple):
    """Losses of B images, each [B], at least fp32: total = margin + weight * reconstruction.

    `margin` is the cross-entropy of a network without capsules; `reconstruction` is not weighted, zero
    without a decoder.
    """

    total: Tensor
    margin: Tensor
    reconstruction: Tensor


def image_losses(output: Output, images: Tensor, labels: Tensor, config: Config) -> ImageLosses:
    """Return the losses of each image (paper, sections 3 and 4.1).

    images [B, C, H, W] are what the network saw, and so what the decoder has to draw; labels int64 [B].
    """
    loss = config.loss
    if config.model.kind == "baseline_cnn":
        scores = output.scores.to(torch.promote_types(output.scores.dtype, torch.float32))
        margin = functional.cross_entropy(scores, labels, reduction="none")
    else:
        margin = margin_loss(
            output.scores,
            labels,
            m_plus=loss.m_plus,
            m_minus=loss.m_minus,
            downweight=loss.downweight,
            form=loss.margin_form,
        )
    if output.reconstructions is None:
        return ImageLosses(margin, margin, torch.zeros_like(margin))
    reconstruction = reconstruction_loss(output.reconstructions, images)
    # Also with weight 0: DDP and ZeRO expect a gradient of every parameter in every step.
    return ImageLosses(margin + loss.reconstruction_weight * reconstruction, margin, reconstruction)


def train_step(
    engine: Engine, batch: Batch, images: Tensor, config: Config, step: int
) -> tuple[Tensor, Tensor]:
    """Do optimizer step number `step` (the first is 0) on this rank's `batch`.

    images: float [b, C, H, W], the batch's after the transform, on the engine's device like the batch.
    Returns (sums, grad_norm): float64 [5], this rank's contribution to the metrics in the order of `SUMS`,
    and the global gradient norm before clipping. Both stay on the device: the step waits for nothing.
    """
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=images.device)
    count = config.train.accumulation
    parts = list(zip(*(t.chunk(count) for t in (images, batch.labels, batch.weights)), strict=True))
    for number, (part, labels, weights) in enumerate(parts):
        torch.manual_seed(microbatch_seed(config.train.seed, step, number, engine.rank))
        with engine.microbatch(last=number == len(parts) - 1):
            output = engine.forward(part, labels)
            losses = image_losses(output, part, labels, config)
            # The engine averages over ranks and sums over microbatches.
            engine.backward((weights * losses.total).sum() * (engine.world_size / batch.num_global))
        sums += metric_sums(losses, output.scores, labels, weights)
    return sums, engine.step(learning_rate_at(step, config.optim))


@torch.no_grad()
def metric_sums(losses: ImageLosses, scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return float64 [5] on the device: weighted sums over the images, in the order of `SUMS`."""
    wrong = scores.argmax(1) != labels
    rows = torch.stack([*losses, wrong.to(losses.total.dtype), torch.ones_like(losses.total)])
    return (rows.double() * weights).sum(1)


def microbatch_seed(seed: int, step: int, microbatch: int, rank: int) -> int:
    """Return the seed of torch's generator for one microbatch of one rank (dropout draws from it).

    A pure function, set anew before every microbatch: so no generator's state has to be saved, and a resumed
    run draws what the uninterrupted one draws.
    """
    text = f"{seed} {step} {microbatch} {rank}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
