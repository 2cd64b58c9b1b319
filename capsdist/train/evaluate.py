"""Test error of a network on a packed split, every rank its part."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
import torch.distributed as dist
from torch import Tensor

from capsdist.config import Config
from capsdist.data import Transform, eval_batches
from capsdist.models import Output
from capsdist.train.checkpoint import load_model
from capsdist.train.precision import autocast, resolve_precision
from capsdist.train.step import SUMS, image_losses, metric_sums

__all__ = ["Evaluation", "evaluate", "evaluate_checkpoint"]


class Evaluation(TypedDict):
    """Result over all ranks: error, mean loss, images, and confusion counts [true class][predicted]."""

    error_percent: float
    loss: float
    num_images: int
    confusion: list[list[int]]


@torch.no_grad()
def evaluate(
    forward: Callable[[Tensor], Output],
    folder: str | os.PathLike[str],
    config: Config,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Evaluation:
    """Return what `forward` makes of the split in `folder`; collective, the same result on every rank.

    Every image counts once, whatever the number of ranks; nothing is random. The reconstruction is that of
    the longest capsule, as at test time in the paper. The network must be in evaluation mode.
    """
    data, classes = config.data, config.model.num_classes
    transform = Transform(crop=data.crop, standardise=data.standardise, train=False)
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    batches = eval_batches(
        folder,
        batch_size=-(-config.train.global_batch // (world_size * config.train.accumulation)),
        rank=rank,
        world_size=world_size,
        pin=device.type == "cuda",
    )
    for host_batch in batches:
        batch = host_batch.to(device)
        images = transform(batch.images, batch.sample_ids, config.train.seed, 0)
        output = forward(images)
        losses = image_losses(output, images, batch.labels, config)
        sums += metric_sums(losses, output.scores, batch.labels, batch.weights)
        cells = batch.labels * classes + output.scores.argmax(1)
        confusion.scatter_add_(0, cells, batch.weights.long())
    if world_size > 1:
        dist.all_reduce(sums)
        dist.all_reduce(confusion)
    total = dict(zip(SUMS, sums.tolist(), strict=True))
    return {
        "error_percent": 100.0 * total["num_wrong"] / total["num_images"],
        "loss": total["loss"] / total["num_images"],
        "num_images": int(total["num_images"]),
        "confusion": confusion.view(classes, classes).tolist(),
    }


def evaluate_checkpoint(
    checkpoint: str | Path, folder: str | os.PathLike[str], *, device: torch.device | None = None
) -> tuple[Config, Evaluation]:
    """Return the configuration of a checkpoint and what its network makes of the split in `folder`.

    Runs on one device, in the precision that the configuration means on `device` (default: the CPU).

    Raises:
        CheckpointError: see `read_checkpoint`. DataError: the split cannot be read.
    """
    device = device or torch.device("cpu")
    config, network = load_model(checkpoint)
    network.to(device)
    precision = resolve_precision(config.train.precision, device)

    def forward(images: Tensor) -> Output:
        with autocast(precision, device):
            return network(images)

    return config, evaluate(forward, folder, config, device=device)
