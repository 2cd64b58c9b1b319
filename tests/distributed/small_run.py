"""A capsule network of 2,000 parameters on 38 invented images: whole runs of the loop in under a second."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from capsdist.config import (
    BaselineCNNConfig,
    CapsNetConfig,
    Config,
    ConvCapsNetConfig,
    Data,
    Optim,
    ResNetCapsNetConfig,
    Train,
)
from capsdist.config.em_capsnet import EMCapsNetConfig
from capsdist.data import write_split
from capsdist.errors import RunError
from capsdist.runs.record import RunRecord
from capsdist.train.checkpoint import read_checkpoint
from capsdist.train.loop import Observe, run_training

CLASSES = ("bar", "dot", "ring")


def write_data(root: Path, num_train: int = 26, num_test: int = 12, *, as_version_1: bool = False) -> None:
    """Write splits of 9x9 images of three classes that a network can tell apart; several shards.

    as_version_1: as version 0.1 did; the digest of the data decides their order.
    """
    generator = np.random.default_rng(5)
    for split, number in (("train", num_train), ("test", num_test)):
        labels = np.arange(number) % 3
        images = generator.integers(0, 60, (number, 1, 9, 9), dtype=np.uint8)
        for image, label in zip(images[:, 0], labels, strict=True):
            image[:, 3:5] |= 0xC0 if label == 0 else 0
            image[3:6, 3:6] |= 0xC0 if label == 1 else 0
            image[[1, -2], 1:-1] |= 0xC0 if label == 2 else 0
        folder, sizes = root / "shapes" / split, {"block_size": 5, "shard_size": 10}
        if as_version_1:
            from version_1 import write_version_1  # late: processes of ranks do not know its folder

            write_version_1(folder, images, labels.astype(np.int64), list(CLASSES), **sizes)
        else:
            write_split(folder, images, labels.astype(np.int64), classes=CLASSES, **sizes)


SMALL = {
    "baseline_cnn": BaselineCNNConfig(image_size=9, num_classes=3),
    "capsnet": CapsNetConfig(
        image_size=9, num_classes=3, conv_channels=4, conv_kernel=3, primary_types=3, primary_dim=2,
        primary_kernel=3, class_dim=5, decoder_hidden=(7, 9),
    ),
    "conv_capsnet": ConvCapsNetConfig(
        image_size=9, num_classes=3, conv_channels=4, conv_kernel=3, primary_types=3, primary_dim=2,
        capsule_types=(3, 4), capsule_dims=(2, 3), capsule_kernels=(3, 2), capsule_strides=(1, 2),
        class_dim=5, residual=True, pose_norm=True, capsule_dropout=0.2, capsule_bias=True,
        decoder=True, decoder_hidden=(7, 9),
    ),
    "em_capsnet": EMCapsNetConfig(
        image_size=9, num_classes=3, conv_channels=4, conv_kernel=3, primary_types=2, capsule_types=(2,),
        capsule_kernels=(3,), capsule_strides=(1,), pose_side=2,
    ),
    "resnet_capsnet": ResNetCapsNetConfig(
        image_size=9, num_classes=3, stem_channels=(4, 6), stem_blocks=(1, 0), norm_groups=2, primary_types=3,
        primary_dim=2, class_dim=5, decoder=True, decoder_hidden=(7, 9),
    ),
}  # fmt: skip


def small_config(
    root: Path, *, kind: str = "capsnet", recipe: Mapping[str, object] | None = None, **train: Any
) -> Config:
    """The configuration of a run on `write_data(root)`: 3 epochs of 4 steps, the last of only 2 images.

    recipe: fields of `optim`; `train`: fields of `train`, and two of `optim`.
    """
    optim = {key: train.pop(key) for key in ("max_grad_norm", "learning_rate") if key in train}
    settings = {
        "name": "small",
        "epochs": 3,
        "global_batch_size": 8,
        "precision": "fp32",
        "seed": 3,
        "log_every_steps": 1,
    }
    return Config(
        model=SMALL[kind],
        data=Data(name="shapes", root=str(root), lanes=2, window=16, shift=1),
        optim=Optim.model_validate(
            {"learning_rate": 0.01, "decay_steps": 5, "decay_rate": 0.8, **optim, **(recipe or {})}
        ),
        train=Train.model_validate(settings | train),
    )  # fmt: skip


def own_rank() -> tuple[int, int]:
    """This process's rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def run_small(
    config: Config,
    checkpoints: Path,
    resume_from: Path | None = None,
    stop_at: int | None = None,
    die_at: int | None = None,
    observe: Observe | None = None,
    record: RunRecord | None = None,
    init_from: Path | None = None,
    keep: Callable[[str, bytes], None] | None = None,
) -> list[dict[str, Any]]:
    """Run the loop, checkpoints below `checkpoints`, and return the events of rank 0.

    `stop_at`: ask for a stop after that step; `die_at`: kill the process after it, as a crash would;
    `record`: gets events and pictures; `init_from`: a checkpoint whose weights a new run starts from;
    `keep`: gets traces.
    """
    rank, world_size = own_rank()
    rows: list[dict[str, Any]] = []

    def save(write: Callable[[Path], None], step: int, metrics: dict[str, float]) -> str:
        write(checkpoints / f"step-{step:04d}")
        if world_size > 1:
            dist.barrier()
        return f"step-{step:04d}"

    def events(row: dict[str, Any]) -> None:
        rows.append(row)
        if record:
            record(row)

    def should_stop(step: int) -> bool:
        if step == die_at:
            os._exit(9)
        return step == stop_at

    run_training(
        config,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        events=events,
        save=save,
        resume_from=resume_from,
        init_from=init_from,
        should_stop=should_stop,
        observe=observe,
        picture=record and record.image,
        keep=keep,
    )
    return rows


def refusal(config: Config, checkpoints: Path) -> str:
    """The message of the RunError that ends a run."""
    with pytest.raises(RunError) as caught:
        run_small(config, checkpoints)
    return str(caught.value)


def losses(rows: list[dict[str, Any]]) -> list[float]:
    """The loss of every train row."""
    return [row["loss"] for row in rows if row["kind"] == "train"]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows after the start, without the figures that two equal runs do not share."""
    timed = {"images_per_s", "step_time_s", "eta_s", "time_s", "seconds", "wall_time_s"}
    return [{k: v for k, v in row.items() if k not in timed} for row in rows if row["kind"] != "start"]


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal to the last bit, the sign of zero included."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].numpy().tobytes() == second[name].numpy().tobytes()
        for name in first
    )


def same_checkpoint(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same state to the last bit, and the same position."""
    a, b = read_checkpoint(first), read_checkpoint(second)
    return (
        same_bits(a.engine.model, b.engine.model)
        and same_bits(a.engine.optimizer, b.engine.optimizer)
        and (a.step, a.epoch, a.position) == (b.step, b.epoch, b.position)
    )
