"""One optimizer step of a rank: microbatches, losses, gradients, update; and what it adds to the metrics.

Ranks may have slices of unequal size, padded to one size with weight 0, and the last step of an epoch is
short. The loss is therefore weighted by true counts: whatever the number of ranks and microbatches, the
gradient is that of ``sum_i weight_i * loss_i / num_global`` over all images i of the step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from capsdist.data.transforms.known import with_shifted
from capsdist.errors import ShapeError
from capsdist.ops.predictions import missed_labels
from capsdist.train.averages import share_at
from capsdist.train.engine.base import Engine
from capsdist.train.phases import Phase, no_phase
from capsdist.train.schedule import learning_rate_at
from capsdist.train.shares import microbatch_of

if TYPE_CHECKING:  # a machine with torch alone runs steps
    from capsdist.config import Config, Family
    from capsdist.data import Batch, Mixup, Transform
    from capsdist.models import Output

__all__ = [
    "Work", "add_gradients", "error_percents", "losses_of", "metric_names", "metric_sums", "microbatch_seed",
    "shown", "train_on", "train_step", "transformed",
]  # fmt: skip


def losses_of(family: Family, config: Config) -> Callable[[Output, Tensor, Tensor], Mapping[str, Tensor]]:
    """Return the losses of `family` for images with `config.model.num_labels` labels each.

    They are called as ``losses(output, drawn, labels)``, see `Batch.drawn`.
    """
    losses = family.losses if config.model.num_labels == 1 else family.multi_label_losses
    assert losses is not None  # a rule of the configuration
    return lambda output, drawn, labels: losses(output, drawn, labels, config.loss)


def metric_names(family: Family, num_labels: int = 1) -> tuple[str, ...]:
    """Return the names of what `metric_sums` adds up, in its order."""
    several = ("num_missed_labels", "num_labels", "num_almost_correct") if num_labels > 1 else ()
    wrong = ("num_wrong",) if family.classifies else ()
    return (*family.loss_names, *several, *wrong, "num_images")


class Work(Protocol):
    """What the steps of a run take besides batches; `capsdist.train.parts.Parts` is one."""

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        ...

    @property
    def family(self) -> Family:
        """That of `config.model.kind`."""
        ...

    @property
    def device(self) -> torch.device:
        """Where steps run."""
        ...

    @property
    def transform(self) -> Transform:
        """Of stored images."""
        ...

    @property
    def mixup(self) -> Mixup | None:
        """None: images are not mixed."""
        ...

    @property
    def engine(self) -> Engine:
        """The network and its optimizer."""
        ...

    @property
    def total_steps(self) -> int:
        """Of the whole run."""
        ...


def train_on(work: Work, host_batch: Batch, step: int, phase: Phase = no_phase) -> tuple[Tensor, Tensor]:
    """Do optimizer step number `step` (the first is 0) on a batch; return as `train_step`."""
    batch, images = transformed(work, host_batch.to(work.device))
    return train_step(work.engine, batch, images, work.family, work.config, step, work.total_steps, phase)


def transformed(work: Work, batch: Batch) -> tuple[Batch, Tensor]:
    """Return a batch on the device, with soft targets if images are mixed, and its images as float."""
    seed = work.config.train.seed
    batch, images = shown(work.transform, batch, seed, work.config.model.known_shift)
    return work.mixup(batch, images, work.transform, seed) if work.mixup else (batch, images)


def shown(transform: Transform, batch: Batch, seed: int, known_shift: int = 0) -> tuple[Batch, Tensor]:
    """Return a batch, and its images after `transform`, which treats its parts as the image they are of.

    known_shift: see `NetworkConfig.known_shift`; with it the batch has known shifts and shifted copies.
    """
    images = transform(batch.images, batch.sample_ids, seed, batch.epoch)
    if known_shift:
        batch = with_shifted(batch, images, seed, known_shift)
    if batch.parts is None:
        return batch, images
    num, epoch = batch.parts.shape[1], batch.epoch
    parts = transform(
        batch.parts.flatten(0, 1),
        batch.sample_ids.repeat_interleave(num),
        seed,
        epoch if isinstance(epoch, int) else epoch.repeat_interleave(num),
    )
    return replace(batch, parts=parts.unflatten(0, (-1, num))), images


def train_step(
    engine: Engine,
    batch: Batch,
    images: Tensor,
    family: Family,
    config: Config,
    step: int,
    total_steps: int,
    phase: Phase = no_phase,
) -> tuple[Tensor, Tensor]:
    """Do optimizer step number `step` (the first is 0) on this rank's `batch`.

    images: float [b, C, H, W], the batch's after the transform, on the engine's device like the batch, whose
    parts are transformed too.
    family: that of `config.model.kind`. total_steps: of the whole run, for the schedule.
    batch.labels: int64 [b], int64 [b, K] or floating [b, J], see `capsdist.ops.targets`.
    Returns (sums, grad_norm): float64, this rank's contribution to the metrics in the order of
    `metric_names`, and the global gradient norm before clipping. Both stay on the device: the step waits for
    nothing. `phase` hears where forward, backward and optimizer begin.
    """

    def seed(microbatch: int) -> None:
        torch.manual_seed(microbatch_seed(config.train.seed, step, microbatch, engine.rank))

    of_step = config
    if family.loss_at is not None:
        of_step = config.model_copy(update={"loss": family.loss_at(config.loss, step, total_steps)})
    sums = add_gradients(engine, batch, images, family, of_step, seed, phase)
    phase("optimizer")
    rate = learning_rate_at(step, config.optim, total_steps)
    return sums, engine.step(rate, share_at(step, config.optim))


def add_gradients(
    engine: Engine,
    batch: Batch,
    images: Tensor,
    family: Family,
    config: Config,
    seed: Callable[[int], None],
    phase: Phase = no_phase,
) -> Tensor:
    """Do the forward and backward passes of a step; arguments and result are those of `train_step`.

    seed: called with the number of each microbatch before its forward pass.
    """
    losses_for, num_labels = losses_of(family, config), config.model.num_labels
    sums = torch.zeros(len(metric_names(family, num_labels)), dtype=torch.float64, device=images.device)
    size = microbatch_of(config.train, len(images))
    whole = images, batch.drawn(images), batch.told, batch.labels, batch.weights
    parts = list(zip(*(tensor.split(size) for tensor in whole), strict=True))
    for number, (part, drawn, told, labels, weights) in enumerate(parts):
        seed(number)
        phase("forward")
        with engine.microbatch(last=number == len(parts) - 1):
            output = engine.forward(part, told)
            losses = losses_for(output, drawn, labels)
            phase("backward")
            # The engine averages over ranks and sums over microbatches.
            engine.backward((weights * losses["loss"]).sum() * (engine.world_size / batch.num_global))
        sums += metric_sums(family, losses, output.scores, labels, weights, num_labels)
    return sums


@torch.no_grad()
def metric_sums(
    family: Family,
    losses: Mapping[str, Tensor],
    scores: Tensor,
    labels: Tensor,
    weights: Tensor,
    num_labels: int = 1,
) -> Tensor:
    """Return float64 on the device: weighted sums over the images, in the order of `metric_names`.

    With one label an image is wrong where the class of its largest score is not its label, or of soft labels
    not the largest; with several where a label is missed, see `missed_labels`, and almost correct where not
    all are. What a family finds that does not classify is neither right nor wrong.

    Raises:
        ShapeError: images have several labels, and `num_labels` is 1.
    """
    total = losses["loss"]
    found: tuple[Tensor, ...]
    if not family.classifies:
        found = ()
    elif num_labels > 1:
        missed, present = missed_labels(scores, labels)
        wrong = missed > 0
        found = missed, present, ~wrong | (missed < present), wrong
    elif labels.is_floating_point():
        found = (labels.gather(1, scores.argmax(1, keepdim=True))[:, 0] < labels.amax(1),)
    elif labels.dim() == 1:
        found = (scores.argmax(1) != labels,)
    else:
        raise ShapeError(
            f"labels {list(labels.shape)} are several an image, and the network has num_labels=1; "
            "set --model.num-labels"
        )
    counts = (each.to(total.dtype) for each in found)
    rows = torch.stack([*(losses[name] for name in family.loss_names), *counts, torch.ones_like(total)])
    return (rows.double() * weights).sum(1)


def error_percents(sums: Mapping[str, float]) -> dict[str, float]:
    """Return errors from sums over all ranks, by the names in `metric_names`; {} without classes.

    error_percent: images whose predicted classes are not their labels. Only where images have several labels:
    label_error_percent, labels that are not predicted, of all labels, and almost_correct_percent, images of
    which at least one label is predicted ("almost correct" in the authors' code, models/layers/layers.py).
    """
    if "num_wrong" not in sums:
        return {}
    errors = {"error_percent": 100.0 * sums["num_wrong"] / sums["num_images"]}
    if "num_labels" in sums:
        errors["label_error_percent"] = 100.0 * sums["num_missed_labels"] / max(sums["num_labels"], 1.0)
        errors["almost_correct_percent"] = 100.0 * sums["num_almost_correct"] / sums["num_images"]
    return errors


def microbatch_seed(seed: int, step: int, microbatch: int, rank: int) -> int:
    """Return the seed of torch's generator for one microbatch of one rank (dropout draws from it).

    A pure function, set anew before every microbatch: so no generator's state has to be saved, and a resumed
    run draws what the uninterrupted one draws.
    """
    text = f"{seed} {step} {microbatch} {rank}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
