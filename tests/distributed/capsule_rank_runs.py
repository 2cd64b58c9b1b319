"""Parts of runs whose class capsules are split over ranks, to be called on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_run import own_rank, small_config
from torch import Tensor

from capsdist.config import Config
from capsdist.models.parallel import layer
from capsdist.train.checkpoint import open_checkpoint, write_checkpoint
from capsdist.train.parts import Parts, build_parts


def split_config(shapes: Path, capsule_ranks: int, **train: Any) -> Config:
    """The small run with biases and log priors, which split differently, and with clipping that acts."""
    settings = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.05, "checkpoint_every_steps": 3}
    config = small_config(shapes, capsule_ranks=capsule_ranks, **(settings | train))
    model = config.model.model_copy(update={"log_priors": True, "capsule_bias": True, "class_dim": 11})
    return config.model_copy(update={"model": model})


def parts_of(config: Config, init_from: Path | None = None) -> Parts:
    rank, world_size = own_rank()
    start = init_from if rank == 0 else None
    device = torch.device("cpu")
    return build_parts(config, rank=rank, world_size=world_size, device=device, init_from=start)


def first_weights(
    config: Config, init_from: Path | None = None, drawn_at_once: int = 16
) -> tuple[dict[str, Tensor], int, int]:
    """The weights that a run begins with, on rank 0; how many this rank holds, and how many there are.

    drawn_at_once: numbers that a rank draws at a time, few, as the network is small.
    """
    layer._DRAWN_AT_ONCE, before = drawn_at_once, layer._DRAWN_AT_ONCE
    try:
        parts = parts_of(config, init_from)
    finally:
        layer._DRAWN_AT_ONCE = before
    held = sum(parameter.numel() for parameter in parts.engine.model.parameters())
    weights = parts.engine.state().read().model
    parts.close()
    return dict(weights), held, parts.num_parameters


def load_and_save(config: Config, checkpoints: list[Path], folder: Path) -> None:
    """Load each checkpoint into one engine, and write what it has then below `folder`."""
    rank, _ = own_rank()
    parts = parts_of(config)
    for number, path in enumerate(checkpoints):
        checkpoint = open_checkpoint(path)
        parts.engine.load(checkpoint.engine)
        state = parts.engine.state()
        if rank:
            state.send()
        else:
            values = {name: getattr(checkpoint, name) for name in ("step", "epoch", "position", "config")}
            write_checkpoint(folder / str(number), type(checkpoint)(engine=state, **values))
    parts.close()
