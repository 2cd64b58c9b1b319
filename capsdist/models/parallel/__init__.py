"""Capsule parallelism: ranks share the children of a network's class capsules. README.md is the guide."""

from capsdist.models.parallel.conversion import (
    gather_optimizer_state,
    gather_state,
    parallelize,
    split_optimizer_state,
    split_state,
)
from capsdist.models.parallel.gradients import clip_gradients, sum_gradients
from capsdist.models.parallel.layer import ParallelClassCapsules

__all__ = [
    "ParallelClassCapsules", "clip_gradients", "gather_optimizer_state", "gather_state", "parallelize",
    "split_optimizer_state", "split_state", "sum_gradients",
]  # fmt: skip
