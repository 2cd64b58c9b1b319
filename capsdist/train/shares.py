"""A rank's share of a step, and its microbatches. Needs neither pydantic nor torch: see `step.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capsdist.config import Train

__all__ = ["images_per_rank", "microbatch_of"]


def images_per_rank(train: Train, num_ranks: int) -> int:
    """Return the most images of a step that one of `num_ranks` ranks has."""
    return -(-train.global_batch_size // num_ranks)


def microbatch_of(train: Train, num_images: int) -> int:
    """Return the most images of a microbatch where a rank has `num_images` of the step.

    For `train.microbatch_size` auto, which `capsdist.train.microbatch` replaces by a number, it is the least
    possible, 1.
    """
    if train.microbatch_size is None:
        return -(-num_images // train.gradient_accumulation_steps)
    return 1 if train.microbatch_size == "auto" else min(train.microbatch_size, num_images)
