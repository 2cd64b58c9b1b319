"""What a run trains with, built from its configuration: data in order, transform, network, engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from capsdist.config import Config, Family
from capsdist.config.models import find_family
from capsdist.config.steps import total_steps
from capsdist.data import Mixup, TrainStream, Transform
from capsdist.data.format.source import open_split
from capsdist.models import build_model
from capsdist.train.checkpoint import read_checkpoint
from capsdist.train.engine.base import Engine
from capsdist.train.engine.build import build_engine
from capsdist.train.initial import take_weights
from capsdist.train.metrics import Row
from capsdist.train.splits import check_splits, split_folders

__all__ = ["Parts", "build_parts", "start_row"]


@dataclass(frozen=True)
class Parts:
    """The parts of one rank. num_parameters: of the network; total_steps: of the whole run.

    left_out: a line about weights of `train.init_from` that do not fit.
    """

    config: Config
    family: Family
    device: torch.device
    train_folder: str
    test_folder: str
    stream: TrainStream
    transform: Transform
    mixup: Mixup | None
    engine: Engine
    num_parameters: int
    total_steps: int
    left_out: str | None


def start_row(parts: Parts, *, resumed_step: int) -> Row:
    """Return the row that begins an attempt, after `resumed_step` steps."""
    config, engine, device = parts.config, parts.engine, parts.device
    return {
        "kind": "start",
        "step": resumed_step,
        "epoch": parts.stream.steps.epochs(resumed_step),
        "run": config.train.name,
        "preset": config.preset,
        "data": config.data.name,
        "test_split": config.data.test_split,
        "model": config.model.kind,
        "network": parts.family.title,
        "num_parameters": parts.num_parameters,
        "precision": engine.precision,
        "engine": engine.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "world_size": engine.world_size,
        "torch_threads": torch.get_num_threads(),
        "global_batch_size": config.train.global_batch_size,
        "steps_per_epoch": parts.stream.steps.before(1),
        "total_steps": parts.total_steps,
        "resumed_step": resumed_step,
    }


def build_parts(
    config: Config, *, rank: int, world_size: int, device: torch.device, init_from: Path | None = None
) -> Parts:
    """Return the parts of rank `rank`; every rank calls it with the same configuration.

    init_from: a checkpoint, in a folder of rank 0, whose weights the network starts from; other ranks get
    them from rank 0.

    Raises:
        DataError, ConfigError, RunError: as `capsdist.train.run_training`.
    """
    data, train = config.data, config.train
    train_folder, test_folder = split_folders(config)
    stream = TrainStream(
        train_folder,
        seed=train.seed,
        global_batch_size=train.global_batch_size,
        lanes=data.lanes,
        window=data.window,
        last_batch=data.last_batch,
        rank=rank,
        world_size=world_size,
        pin=device.type == "cuda",
        partners=data.mixup > 0,
    )
    check_splits(config, stream.split.index, open_split(test_folder).index)
    torch.manual_seed(train.seed)
    model = build_model(config.model, config.routing)
    left_out = take_weights(model, read_checkpoint(init_from).engine.model, config) if init_from else None
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Parts(
        config=config,
        family=find_family(config.model.kind),
        device=device,
        train_folder=train_folder,
        test_folder=test_folder,
        stream=stream,
        transform=Transform.of(data, train=True),
        mixup=Mixup(data.mixup, config.model.num_classes) if data.mixup else None,
        engine=build_engine(config, model, rank=rank, world_size=world_size, device=device),
        num_parameters=num_parameters,
        total_steps=total_steps(config, stream.split.index.num_samples),
        left_out=left_out,
    )
