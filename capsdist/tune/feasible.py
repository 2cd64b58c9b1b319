"""Refuse points that cannot be trained, by formula: no network is built, no trial is spent.

Memory is a floor by `capsdist.planning.memory` (weights, gradients, optimizer state, what autograd keeps, the
process): a point refused for it could not have run, one that is let through may still fail. Of families
without a function `cost` the outputs of layers count.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from capsdist.config import Config, problems
from capsdist.config.models import find_family
from capsdist.errors import ConfigError
from capsdist.models.counts import num_parameters, output_numbers
from capsdist.planning.memory import Setup, optimizer_slots, state_bytes, training_memory
from capsdist.storage.memory import memory_here
from capsdist.train.shares import images_per_rank, microbatch_of

__all__ = ["GIB", "PROCESS_BYTES", "Limits", "memory_here", "refusal", "worker_bytes"]

GIB = 2**30
PROCESS_BYTES = 300 * 10**6
"""A Ray worker with torch in it, before it holds a network; measured (resident set)."""


@dataclass(frozen=True)
class Limits:
    """What a trial may need; None: no limit."""

    max_parameters: int | None = None
    worker_bytes: int | None = None


def refusal(config: Config, limits: Limits) -> str | None:
    """Return in one line why a trial with `config` is not worth starting, None if it may run."""
    if found := problems(config):
        return "; ".join(map(str, found))
    size = num_parameters(config)
    if limits.max_parameters is not None and size > limits.max_parameters:
        return f"{size:,} parameters, search.max_parameters={limits.max_parameters:,}"
    need = worker_bytes(config)
    if limits.worker_bytes is not None and need > limits.worker_bytes:
        return f"needs {need / GIB:.2f} GiB a worker or more, there are {limits.worker_bytes / GIB:.2f}"
    return None


def worker_bytes(config: Config) -> int:
    """Return the memory that a worker needs at least to train `config`."""
    train = config.train
    divided = train.engine == "zero" or (train.engine == "auto" and train.device != "cpu")
    images = microbatch_of(train, share := images_per_rank(train, train.num_workers))
    setup = Setup(
        num_ranks=train.num_workers,
        zero_stage=train.zero_stage if divided else 0,
        narrow_bytes=4 if train.precision == "fp32" else 2,
        microbatch=images,
        num_microbatches=-(-share // images),
        slots=optimizer_slots(config),
    )
    price = find_family(config.model.kind).cost
    with contextlib.suppress(ConfigError):  # the family knows no price of this network
        if price is not None:
            return PROCESS_BYTES + training_memory(price(config.model, config.routing), setup).least
    state = sum(state_bytes(num_parameters(config), setup))
    return PROCESS_BYTES + state + output_numbers(config) * images * setup.narrow_bytes
