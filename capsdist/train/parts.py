"""What a run trains with, built from its configuration: data in order, transform, network, engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from capsdist.config import Config, Family
from capsdist.config.models import find_family
from capsdist.config.optim_rules import check_schedule
from capsdist.config.steps import total_steps
from capsdist.data import Mixup, Transform
from capsdist.data.stream import Stream
from capsdist.models.parallel.layer import whole_shapes
from capsdist.train.checkpoint import open_checkpoint, read_config
from capsdist.train.engine.base import Engine
from capsdist.train.engine.build import build_engine
from capsdist.train.initial import take_weights
from capsdist.train.machine import processor
from capsdist.train.metrics import Row
from capsdist.train.microbatch import resolve_microbatch
from capsdist.train.network import build_rank_network
from capsdist.train.shares import images_per_rank, microbatch_of
from capsdist.train.splits import split_folders
from capsdist.train.streams import open_stream

__all__ = ["Parts", "build_parts", "start_row"]


@dataclass(frozen=True)
class Parts:
    """The parts of one rank. num_parameters: of the network; total_steps: of the whole run.
    config: with a number in place of `train.microbatch_size` auto.

    train_folder: where the training images are; validation_folder: the test split's where the run validates
    on that, None without validation; test_folder: None if there is none.
    left_out: a line about weights of `train.init_from` that do not fit.
    """

    config: Config
    family: Family
    device: torch.device
    train_folder: str
    validation_folder: str | None
    test_folder: str | None
    stream: Stream
    transform: Transform
    mixup: Mixup | None
    engine: Engine
    num_parameters: int
    total_steps: int
    left_out: str | None

    def close(self) -> None:
        """Leave the group of ranks, and stop sharing memory with other processes."""
        self.stream.close()
        self.engine.close()


def start_row(parts: Parts, *, resumed_step: int, speed: str, variant: str = "") -> Row:
    """Return the row that begins an attempt, after `resumed_step` steps.

    speed, variant: see `capsdist.train.speed.Steps`.
    """
    config, engine, device = parts.config, parts.engine, parts.device
    return {
        "kind": "start",
        "step": resumed_step,
        "epoch": parts.stream.steps.epochs(resumed_step),
        "run": config.train.name,
        "preset": config.preset,
        "data": config.data.name if config.data.reader == "packed" else config.data.urls,
        "validation_split": config.data.validation_split if parts.validation_folder else None,
        "test_split": config.data.test_split if parts.test_folder else "",
        "model": config.model.kind,
        "network": parts.family.title,
        "num_parameters": parts.num_parameters,
        "precision": engine.precision,
        "engine": engine.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor(),
        "world_size": engine.world_size,
        "torch_threads": torch.get_num_threads(),
        "global_batch_size": config.train.global_batch_size,
        "microbatch_size": microbatch_of(config.train, images_per_rank(config.train, engine.world_size)),
        "steps_per_epoch": parts.stream.steps.before(1),
        "total_steps": parts.total_steps,
        "resumed_step": resumed_step,
        "resident": parts.stream.resident,
        "speed": speed,
        **({"variant": variant} if variant else {}),
    }


def build_parts(
    config: Config,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    init_from: Path | None = None,
    resume_from: Path | None = None,
) -> Parts:
    """Return the parts of rank `rank`; every rank calls it with the same configuration.

    init_from: a checkpoint, in a folder of rank 0, whose weights the network starts from; other ranks get
    them from rank 0. resume_from: a checkpoint that every rank can read and its caller will load: the network
    does not start from `init_from`, and `train.microbatch_size` auto takes no more than the checkpoint's run.

    Raises:
        DataError, ConfigError, RunError: as `capsdist.train.run_training`.
    """
    data, train = config.data, config.train
    stream = open_stream(config, rank=rank, world_size=world_size, device=device)
    check_schedule(config, stream.index.num_samples)
    folders = split_folders(config)
    test = folders.get("test_split")
    model = build_rank_network(config, world_size=world_size, device=device)
    left_out = None
    if train.init_from and not resume_from:
        weights = open_checkpoint(init_from).engine.model if init_from else None
        left_out = take_weights(model, weights, config, device)
    if train.microbatch_size == "auto":
        saved = read_config(resume_from) if resume_from else None
        config = resolve_microbatch(config, model, world_size=world_size, device=device, saved=saved)
    return Parts(
        config=config,
        family=find_family(config.model.kind),
        device=device,
        train_folder=folders.get("train_split", data.urls),
        validation_folder=None if data.validation_split is None else folders.get("validation_split", test),
        test_folder=test,
        stream=stream,
        transform=Transform.of(data, train=True),
        mixup=Mixup(data.mixup, config.model.num_classes) if data.mixup else None,
        engine=build_engine(config, model, rank=rank, world_size=world_size, device=device),
        num_parameters=sum(shape.numel() for shape in whole_shapes(model).values()),
        total_steps=total_steps(config, stream.index.num_samples),
        left_out=left_out,
    )
