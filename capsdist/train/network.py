"""The network of a run as every rank holds it: whole, or its class capsules split over ranks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from capsdist.config import Config
from capsdist.errors import ConfigError, Problem, RunError, ShapeError
from capsdist.models import build_model
from capsdist.models.parallel.checks import check_splittable
from capsdist.models.parallel.conversion import parallelize

__all__ = ["build_rank_network", "check_network"]


def build_rank_network(config: Config, *, world_size: int, device: torch.device) -> nn.Module:
    """Return the network with the weights that `train.seed` draws; with capsule ranks collective.

    A network with a method `initialise`, as `CapsNet` has, is split before it has values, so that no rank
    holds all weights; others are built whole and split then. For the weights see
    `ParallelClassCapsules`: mostly those of a run without.

    Raises:
        ConfigError: see `check_network`. RunError: no process group.
    """
    network = _network(config, world_size, device)
    if config.train.recompute == "blocks":  # of a family that has them: a rule of the configuration
        network.recompute_blocks = True  # type: ignore[assignment]
    return network


def _network(config: Config, world_size: int, device: torch.device) -> nn.Module:
    """Return the network of `build_rank_network`."""
    ranks = config.train.capsule_ranks
    torch.manual_seed(config.train.seed)
    if ranks == 1:
        return build_model(config.model, config.routing)
    check_network(config, world_size)
    if not dist.is_initialized():
        raise RunError(f"capsule_ranks={ranks} needs torch.distributed; call init_process_group first")
    mesh = _mesh(config, world_size, device)
    with torch.device("meta"):
        network = build_model(config.model, config.routing)
    initialise: Callable[[], None] | None = getattr(network, "initialise", None)
    if initialise is None:
        return parallelize(build_model(config.model, config.routing).to(device), mesh)
    network = parallelize(network, mesh).to_empty(device="cpu")
    initialise()
    return network


def _mesh(config: Config, world_size: int, device: torch.device) -> DeviceMesh:
    """Return the mesh (replicas, children); its collectives give up when those of all ranks do."""
    # Neighbours share children: they exchange the most, and are on one machine first of all.
    numbers = torch.arange(world_size).view(-1, config.train.capsule_ranks)
    timeout = timedelta(seconds=config.launch.collective_timeout_s)
    groups = [
        cast(dist.ProcessGroup, dist.new_subgroups_by_enumeration(lines.tolist(), timeout=timeout)[0])
        for lines in (numbers.T, numbers)
    ]
    return DeviceMesh.from_group(groups, device.type, numbers, mesh_dim_names=("replicas", "children"))


def check_network(config: Config, world_size: int) -> None:
    """Check that the network can be built and its class capsules split; nothing is allocated.

    Raises:
        ConfigError: it cannot, for `world_size` ranks.
    """
    ranks = config.train.capsule_ranks
    if world_size % ranks:
        rule, fix = f"does not divide {world_size} workers", "set --train.capsule-ranks to a divisor"
        raise ConfigError([Problem("train.capsule_ranks", ranks, rule, fix)])
    try:
        with torch.device("meta"):
            network = build_model(config.model, config.routing)
    except ShapeError as error:
        rule = f"its network cannot be built: {error}"
        raise ConfigError(
            [Problem("model.kind", config.model.kind, rule, "correct the section model")]
        ) from None
    if ranks == 1:
        return
    try:
        check_splittable(network, ranks)
    except (ShapeError, ValueError) as error:
        raise ConfigError(
            [Problem("train.capsule_ranks", ranks, f"cannot be: {error}", "or set --train.capsule-ranks 1")]
        ) from None
