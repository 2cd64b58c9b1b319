"""One optimizer step of a rank: microbatches, losses, gradients, update; and what it adds to the metrics.

Ranks may have slices of unequal size, padded to one size with weight 0, and the last step of an epoch is
short. The loss is therefore weighted by true counts: whatever the number of ranks and microbatches, the
gradient is that of ``sum_i weight_i * loss_i / num_global`` over all images i of the step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from capsdist.train.engine.base import Engine
from capsdist.train.optim import learning_rate_at
from capsdist.train.phases import Phase, no_phase

if TYPE_CHECKING:  # a machine with torch alone runs steps
    from capsdist.config import Config, Family
    from capsdist.data import Batch

__all__ = ["metric_names", "metric_sums", "microbatch_seed", "train_step"]


def metric_names(family: Family) -> tuple[str, ...]:
    """Return the names of what `metric_sums` adds up, in its order."""
    return (*family.loss_names, "num_wrong", "num_images")


def train_step(
    engine: Engine,
    batch: Batch,
    images: Tensor,
    family: Family,
    config: Config,
    step: int,
    phase: Phase = no_phase,
) -> tuple[Tensor, Tensor]:
    """Do optimizer step number `step` (the first is 0) on this rank's `batch`.

    images: float [b, C, H, W], the batch's after the transform, on the engine's device like the batch.
    family: that of `config.model.kind`.
    Returns (sums, grad_norm): float64, this rank's contribution to the metrics in the order of
    `metric_names`, and the global gradient norm before clipping. Both stay on the device: the step waits for
    nothing. `phase` hears where forward, backward and optimizer begin.
    """
    sums = torch.zeros(len(metric_names(family)), dtype=torch.float64, device=images.device)
    count = config.train.gradient_accumulation_steps
    parts = list(zip(*(t.chunk(count) for t in (images, batch.labels, batch.weights)), strict=True))
    for number, (part, labels, weights) in enumerate(parts):
        torch.manual_seed(microbatch_seed(config.train.seed, step, number, engine.rank))
        phase("forward")
        with engine.microbatch(last=number == len(parts) - 1):
            output = engine.forward(part, labels)
            losses = family.losses(output, part, labels, config.loss)
            phase("backward")
            # The engine averages over ranks and sums over microbatches.
            engine.backward((weights * losses["loss"]).sum() * (engine.world_size / batch.num_global))
        sums += metric_sums(family, losses, output.scores, labels, weights)
    phase("optimizer")
    return sums, engine.step(learning_rate_at(step, config.optim))


@torch.no_grad()
def metric_sums(
    family: Family, losses: Mapping[str, Tensor], scores: Tensor, labels: Tensor, weights: Tensor
) -> Tensor:
    """Return float64 on the device: weighted sums over the images, in the order of `metric_names`."""
    total = losses["loss"]
    wrong = (scores.argmax(1) != labels).to(total.dtype)
    rows = torch.stack([*(losses[name] for name in family.loss_names), wrong, torch.ones_like(total)])
    return (rows.double() * weights).sum(1)


def microbatch_seed(seed: int, step: int, microbatch: int, rank: int) -> int:
    """Return the seed of torch's generator for one microbatch of one rank (dropout draws from it).

    A pure function, set anew before every microbatch: so no generator's state has to be saved, and a resumed
    run draws what the uninterrupted one draws.
    """
    text = f"{seed} {step} {microbatch} {rank}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
