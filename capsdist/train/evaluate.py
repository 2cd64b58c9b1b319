"""Test error of a network, or of several as one, on a packed split, every rank its part."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor

from capsdist.config import Config
from capsdist.config.models import find_family
from capsdist.config.rules import check_classifies
from capsdist.config.shapes import stored_shape
from capsdist.console import Log, announced
from capsdist.data import Batch, Transform, check_split, eval_batches
from capsdist.data.format.checks import check_num_labels
from capsdist.data.format.source import SourceIndex, open_split
from capsdist.data.transforms.geometry import moved
from capsdist.errors import CheckpointError, ConfigError, DataError, Problem
from capsdist.models import Output
from capsdist.ops.predictions import largest, swapped
from capsdist.statistics import error_interval
from capsdist.storage import join
from capsdist.train.engine.base import Engine
from capsdist.train.ensemble import Ensemble, mean_output
from capsdist.train.precision import Precision
from capsdist.train.shares import images_per_rank, microbatch_of
from capsdist.train.splits import check_trained_classes
from capsdist.train.step import error_percents, losses_of, metric_names, metric_sums, shown

__all__ = [
    "Collect", "Evaluated", "Evaluation", "Progress", "evaluate", "evaluate_checkpoint",
    "evaluate_checkpoints", "evaluate_engine",
]  # fmt: skip

Collect = Callable[[Batch, Output], None]
"""Called with every batch of this rank, padding included, and what the network made of it."""

Progress = Callable[[int, int], None]
"""Called as progress(done, total), images of all ranks, every 5 seconds of an evaluation."""

_QUIET_S = 5.0


class Evaluation(TypedDict):
    """Result over all ranks.

    Attributes:
        error_percent: images whose predicted classes are not their labels; as many are predicted as the image
            has labels. Absent where the family does not classify.
        error_interval_percent: ends of its 95 % interval, by Wilson; absent like it.
        loss: mean over images.
        num_images: images, each counted once.
        confusion: counts [true class][predicted]; absent where images have several labels, or no classes.
        label_error_percent: labels that are not predicted, of all labels; only where images have several.
        almost_correct_percent: images of which a label is predicted; only where images have several.
    """

    error_percent: NotRequired[float]
    error_interval_percent: NotRequired[list[float]]
    loss: float
    num_images: int
    confusion: NotRequired[list[list[int]]]
    label_error_percent: NotRequired[float]
    almost_correct_percent: NotRequired[float]


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of checkpoints, and what it was of.

    Attributes:
        configs: of each checkpoint.
        split: path or URL of the split.
        index: of the split.
        device, precision: in which the first network ran.
        result: what was found.
    """

    configs: tuple[Config, ...]
    split: str
    index: SourceIndex
    device: torch.device
    precision: Precision
    result: Evaluation


@torch.no_grad()
def evaluate(
    forward: Callable[..., Output],
    folder: str | os.PathLike[str],
    config: Config,
    *,
    device: torch.device,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    progress: Progress | None = None,
    observe: Callable[[Tensor, Output], None] | None = None,
    collect: Collect | None = None,
    shifts: int = 0,
    shift_step: int = 1,
) -> Evaluation:
    """Return what ``forward(images)`` makes of the split in `folder`; collective, the same on every rank.

    Every image counts once, whatever the number of ranks; nothing is random. The reconstruction is that of
    the longest capsule, or of the `model.num_labels` longest, as at test time in the paper. Where each is
    drawn by itself, that of a label is compared with the image of this label, and that of a wrong class with
    the remaining one; a split that is not one of recipes has no such images, so that its loss is without
    reconstruction. A network that draws shifted copies is called as ``forward(images, known_shifts)``, and
    an image has the same shift in every evaluation. The network must be in evaluation mode; `batch_size` is
    that of one rank; `progress` is called on ranks that have one. With `shifts` the scores are means over
    copies of each image, moved by multiples of `shift_step` pixels up to so many each way; of images that are
    cropped these are other crops. `observe` is called with this rank's first batch, images [B, C, H, W] as
    the network saw them, or the shifted copies, and what it made of them.
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
        parts=config.model.draws_parts,
    )
    told = time.monotonic()
    for number, host_batch in enumerate(batches):
        if progress and time.monotonic() - told > _QUIET_S:
            told, total = time.monotonic(), open_split(folder).index.num_samples
            progress(min(number * batch_size * world_size, total), total)
        batch, images = shown(transform, host_batch.to(device), config.train.seed, config.model.known_shift)
        output = forward(images) if batch.known_shifts is None else forward(images, batch.known_shifts)
        if shifts:
            copies = (moved(batch.images, *by) for by in _moves(shifts, shift_step))
            seen = (transform(copy, batch.sample_ids, config.train.seed, 0) for copy in copies)
            output = mean_output([output, *map(forward, seen)])
        if collect:
            collect(batch, output)
        drawn = images if batch.shifted is None else batch.shifted
        if observe and number == 0:
            observe(drawn, output)
        if config.model.draws_parts:
            output, drawn = _in_order(output, batch, images)
        losses = losses_for(output, drawn, batch.labels)
        sums += metric_sums(family, losses, output.scores, batch.labels, batch.weights, num_labels)
        if num_labels == 1 and family.classifies:
            cells = batch.labels * classes + output.scores.argmax(1)
            confusion.scatter_add_(0, cells, batch.weights.long())
    if world_size > 1:
        dist.all_reduce(sums)
        dist.all_reduce(confusion)
    total = dict(zip(names, sums.tolist(), strict=True))
    errors = error_percents(total)
    result: Evaluation = {
        "loss": total["loss"] / total["num_images"],
        "num_images": int(total["num_images"]),
    }
    if not family.classifies:
        return result
    result["error_percent"] = errors["error_percent"]
    result["error_interval_percent"] = error_interval(errors["error_percent"], result["num_images"])
    if num_labels == 1:
        result["confusion"] = confusion.view(classes, classes).tolist()
    else:
        result["label_error_percent"] = errors["label_error_percent"]
        result["almost_correct_percent"] = errors["almost_correct_percent"]
    return result


def _in_order(output: Output, batch: Batch, images: Tensor) -> tuple[Output, Tensor]:
    """Return an output, and the images of the labels alone in the order of the classes that it has drawn."""
    if batch.parts is None:
        return output._replace(reconstructions=None), images
    other = swapped(largest(output.scores, batch.parts.shape[1]), batch.labels)
    return output, torch.where(other[:, None, None, None, None], batch.parts.flip(1), batch.parts)


def _moves(shifts: int, step: int) -> list[tuple[int, int]]:
    """Return all moves down and right by up to `shifts` pixels, but that by none."""
    steps = range(-shifts, shifts + 1, step)
    return [(down, right) for down in steps for right in steps if (down, right) != (0, 0)]


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

    Arguments and errors: see `evaluate_checkpoints`.
    """
    found = evaluate_checkpoints([checkpoint], folder, device=device, batch_size=batch_size, log=log)
    return found.configs[0], found.result


def evaluate_checkpoints(
    checkpoints: Sequence[str | Path],
    folder: str | os.PathLike[str] | None = None,
    *,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    batch_size: int = 128,
    shifts: int = 0,
    shift_step: int = 1,
    collect: Collect | None = None,
    log: Log = print,
) -> Evaluated:
    """Return what the networks of `checkpoints` make of the split in `folder`: several are an ensemble.

    The scores of an ensemble are the means over its networks, which order classes as the sums do: the paper
    (section 7) sums those of 7 networks for CIFAR-10. The loss is then that of the mean scores, without
    reconstruction. `collect`, `shifts`, `shift_step`: see `evaluate`. Default of `folder`: the test split of
    the first run.
    Runs on one device, `auto` the GPU if there is one, each network in the precision that its configuration
    means there, `batch_size` images at a time. `log` gets a line where a checkpoint does not name the classes
    that it was trained on, and about every 5 seconds.

    Raises:
        CheckpointError: see `Ensemble`; or the loss is not finite.
        ConfigError: no GPU where one is asked for; `batch_size` below 1; `shifts` below 0, or not below the
            sides of the images, or no multiple of `shift_step`; the networks are of a family that does not
            classify.
        DataError: the split cannot be read, is not what the network takes, or numbers its classes in another
            way than the data that a network was trained on.
    """
    if batch_size < 1:
        raise ConfigError([Problem("batch_size", batch_size, "must be at least 1", "the default is 128")])
    place = _device(device)
    names = ", ".join(map(str, checkpoints))
    ensemble = Ensemble(checkpoints, place)
    config = ensemble.saved[0].config
    check_classifies(config, "an evaluation of a checkpoint")
    if not (folder or config.data.name):
        raise DataError(f"checkpoint {names} names no packed split; give the folder of one")
    split = os.fspath(folder or join(config.data.root, config.data.name, config.data.test_split))
    index = _checked_split(split, config, log)
    side = min(index.image_shape[1:])
    if not 0 <= shifts < side:
        rule = f"must be from 0 to {side - 1}, the images have {side} pixels"
        raise ConfigError([Problem("shifts", shifts, rule, "1 or 2 are usual")])
    if shift_step < 1 or shifts % shift_step:
        rule = f"must be at least 1, and shifts={shifts} a multiple of it"
        raise ConfigError([Problem("shift_step", shift_step, rule, "the default is 1")])
    for each in ensemble.saved:
        check_trained_classes(each, index, split, log)

    def progress(done: int, total: int) -> None:
        log(f"evaluated {done:,} of {total:,} images")

    result = evaluate(
        ensemble,
        split,
        config,
        device=place,
        batch_size=batch_size,
        progress=progress,
        collect=collect,
        shifts=shifts,
        shift_step=shift_step,
    )
    if not math.isfinite(result["loss"]):
        raise CheckpointError(
            f"checkpoint {names}: its loss on {split} is {result['loss']:g}, so "
            "its error means nothing; take an older checkpoint"
        )
    configs = tuple(each.config for each in ensemble.saved)
    return Evaluated(configs, split, index, place, ensemble.precision, result)


def _checked_split(split: str, config: Config, log: Log) -> SourceIndex:
    """Return the index of a split that fits the network of `config`."""
    data, model = config.data, config.model
    with announced(log, f"reading {split}"):
        index = check_split(
            split,
            image_shape=stored_shape(config),
            num_classes=model.num_classes,
            crop=data.least_size,
            decode_size=data.decode_size,
            remedy="give the folder of a packed split",
        )
    check_num_labels(index, model.num_labels, split)
    return index


def _device(name: str) -> torch.device:
    gpu = torch.cuda.is_available()
    if name == "gpu" and not gpu:
        raise ConfigError([Problem("device", name, "is not there: torch finds no GPU", "use cpu or auto")])
    return torch.device("cuda" if gpu and name != "cpu" else "cpu")
