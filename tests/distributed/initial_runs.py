"""Networks that start from the weights of another run, to be called on every rank."""

from __future__ import annotations

from pathlib import Path

import torch
from small_run import own_rank

from capsdist.config import Config
from capsdist.models import build_model
from capsdist.models.parallel.conversion import gather_state, parallelize
from capsdist.train.checkpoint import read_checkpoint
from capsdist.train.initial import take_weights
from capsdist.train.parts import build_parts


def taken(config: Config, checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights with which the engine of `config` begins, on rank 0; only that one reads `checkpoint`."""
    rank, world_size = own_rank()
    start = checkpoint if rank == 0 else None
    where = torch.device("cpu")
    parts = build_parts(config, rank=rank, world_size=world_size, device=where, init_from=start)
    try:
        return parts.engine.state().read().model
    finally:
        parts.engine.close()


def taken_in_parallel(config: Config, checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights of a network that is split over the ranks after rank 0 has taken them, on rank 0."""
    rank, _ = own_rank()
    torch.manual_seed(rank)
    network = build_model(config.model, config.routing)
    if rank == 0:
        take_weights(network, read_checkpoint(checkpoint).engine.model, config)
    return gather_state(parallelize(network))
