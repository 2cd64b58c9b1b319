"""Test error of a network on a packed split, every rank its part."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor

from capsdist.config import Config
from capsdist.config.models import find_family
from capsdist.config.shapes import stored_shape
from capsdist.console import Log, announced
from capsdist.data import Transform, check_split, eval_batches
from capsdist.data.format.checks import check_num_labels
from capsdist.data.format.source import open_split
from capsdist.errors import CheckpointError, ConfigError, DataError, Problem
from capsdist.models import Output
from capsdist.storage import join
from capsdist.train.checkpoint import build_network, open_checkpoint
from capsdist.train.engine.base import Engine
from capsdist.train.precision import autocast, resolve_precision
from capsdist.train.shares import images_per_rank, microbatch_of
from capsdist.train.splits import check_trained_classes
from capsdist.train.step import error_percents, losses_of, metric_names, metric_sums

__all__ = ["Evaluation", "Progress", "evaluate", "evaluate_checkpoint", "evaluate_engine"]

Progress = Callable[[int, int], None]
"""Called as progress(done, total), images of all ranks, every 5 seconds of an evaluation."""

_QUIET_S = 5.0


class Evaluation(TypedDict):
    """Result over all ranks.

    Attributes:
        error_percent: images whose predicted classes are not their labels; as many are predicted as the image
            has labels.
        loss: mean over images.
        num_images: images, each counted once.
        confusion: counts [true class][predicted]; absent where images have several labels.
        label_error_percent: labels that are not predicted, of all labels; only where images have several.
    """

    error_percent: float
    loss: float
    num_images: int
    confusion: NotRequired[list[list[int]]]
    label_error_percent: NotRequired[float]


@torch.no_grad()
def evaluate(
    forward: Callable[[Tensor], Output],
    folder: str | os.PathLike[str],
    config: Config,
    *,
    device: torch.device,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    progress: Progress | None = None,
    observe: Callable[[Tensor, Output], None] | None = None,
) -> Evaluation:
    """Return what `forward` makes of the split in `folder`; collective, the same result on every rank.

    Every image counts once, whatever the number of ranks; nothing is random. The reconstruction is that of
    the longest capsule, or of the `model.num_labels` longest, as at test time in the paper. The network must
    be in evaluation mode; `batch_size` is that of one rank; `progress` is called on ranks that have one.
    `observe` is called with this rank's first batch, images [B, C, H, W] as the network saw them, and what
    the network made of it.
    """
    classes, num_labels = config.model.num_classes, config.model.num_labels
    transform = Transform.of(config.data, train=False)
    family = find_family(config.model.kind)
    names, losses_for = metric_names(family, num_labels), losses_of(family, config)
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    batches = eval_batches(
        folder,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        pin=device.type == "cuda",
        decode_size=config.data.decode_size,
    )
    told = time.monotonic()
    for number, host_batch in enumerate(batches):
        if progress and time.monotonic() - told > _QUIET_S:
            told, total = time.monotonic(), open_split(folder).index.num_samples
            progress(min(number * batch_size * world_size, total), total)
        batch = host_batch.to(device)
        images = transform(batch.images, batch.sample_ids, config.train.seed, 0)
        output = forward(images)
        if observe and number == 0:
            observe(images, output)
        losses = losses_for(output, images, batch.labels)
        sums += metric_sums(family, losses, output.scores, batch.labels, batch.weights, num_labels)
        if num_labels == 1:
            cells = batch.labels * classes + output.scores.argmax(1)
            confusion.scatter_add_(0, cells, batch.weights.long())
    if world_size > 1:
        dist.all_reduce(sums)
        dist.all_reduce(confusion)
    total = dict(zip(names, sums.tolist(), strict=True))
    errors = error_percents(total)
    result: Evaluation = {
        "error_percent": errors["error_percent"],
        "loss": total["loss"] / total["num_images"],
        "num_images": int(total["num_images"]),
    }
    if num_labels == 1:
        result["confusion"] = confusion.view(classes, classes).tolist()
    else:
        result["label_error_percent"] = errors["label_error_percent"]
    return result


def evaluate_engine(
    engine: Engine,
    folder: str | os.PathLike[str],
    config: Config,
    *,
    progress: Progress | None = None,
    observe: Callable[[Tensor, Output], None] | None = None,
) -> Evaluation:
    """Return what the network of an engine in training makes of the split in `folder`; see `evaluate`.

    The weights are their averages where `optim.average_decay` asks for them. Batches have the size of a
    microbatch; the network is in training mode again afterwards.
    """
    train, world_size = config.train, engine.world_size
    engine.model.eval()
    with engine.averaged():
        found = evaluate(
            engine.forward,
            folder,
            config,
            device=engine.device,
            batch_size=microbatch_of(train, images_per_rank(train, world_size)),
            rank=engine.rank,
            world_size=world_size,
            progress=progress,
            observe=observe,
        )
    engine.model.train()
    return found


def evaluate_checkpoint(
    checkpoint: str | Path,
    folder: str | os.PathLike[str] | None = None,
    *,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    batch_size: int = 128,
    log: Log = print,
) -> tuple[Config, Evaluation]:
    """Return the configuration of a checkpoint and what its network makes of the split in `folder`.

    Default: the test split of the run. Runs on one device, `auto` the GPU if there is one,
    in the precision that the configuration means there, `batch_size` images at a time. `log` gets a line
    where the checkpoint does not name the classes that it was trained on, and about every 5 seconds.

    Raises:
        CheckpointError: see `open_checkpoint`; or the loss is not finite.
        ConfigError: no GPU where one is asked for; `batch_size` below 1.
        DataError: the split cannot be read, is not what the network takes, or numbers its classes in another
            way than the data that the network was trained on.
    """
    if batch_size < 1:
        raise ConfigError([Problem("batch_size", batch_size, "must be at least 1", "the default is 128")])
    place = _device(device)
    saved = open_checkpoint(checkpoint)
    config, network = saved.config, build_network(saved)
    data = config.data
    if not (folder or data.name):
        raise DataError(f"checkpoint {os.fspath(checkpoint)} names no packed split; give the folder of one")
    folder = folder or join(data.root, data.name, data.test_split)
    with announced(log, f"reading {folder}"):
        index = check_split(
            folder,
            image_shape=stored_shape(config),
            num_classes=config.model.num_classes,
            crop=data.least_size,
            decode_size=data.decode_size,
            remedy="give the folder of a packed split",
        )
    check_num_labels(index, config.model.num_labels, str(folder))
    check_trained_classes(saved, index, folder, log)
    network.to(place)
    precision = resolve_precision(config.train.precision, place)

    def forward(images: Tensor) -> Output:
        with autocast(precision, place):
            return network(images)

    def progress(done: int, total: int) -> None:
        log(f"evaluated {done:,} of {total:,} images")

    result = evaluate(forward, folder, config, device=place, batch_size=batch_size, progress=progress)
    if not math.isfinite(result["loss"]):
        raise CheckpointError(
            f"checkpoint {os.fspath(checkpoint)}: its loss on {os.fspath(folder)} is {result['loss']:g}, so "
            "its error means nothing; take an older checkpoint"
        )
    return config, result


def _device(name: str) -> torch.device:
    gpu = torch.cuda.is_available()
    if name == "gpu" and not gpu:
        raise ConfigError([Problem("device", name, "is not there: torch finds no GPU", "use cpu or auto")])
    return torch.device("cuda" if gpu and name != "cpu" else "cpu")
