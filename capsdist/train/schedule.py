"""The learning rate of a step: pure functions, so that a resumed run needs no state of a scheduler.

Steps that fp16 skips for overflow count, because the schedule follows the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a machine with torch alone runs steps
    from capsdist.config.schema import Optim

__all__ = ["SCHEDULES", "learning_rate_at"]


def learning_rate_at(step: int, optim: Optim, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (the first is 0).

    During the warm-up, W steps, it is `optim.learning_rate` times (step + 1) / (W + 1); the schedule begins
    with step W. The schedules cosine and one_cycle end at step `optim.schedule_steps`, without it at
    `total_steps`, the steps of the whole run, and stay at the floor from there.

    Example:
        >>> learning_rate_at(2000, Optim(), 5000)
        0.00096
    """
    warmup = optim.warmup_steps
    if step < warmup:
        return optim.learning_rate * (step + 1) / (warmup + 1)
    length = (optim.schedule_steps or total_steps) - warmup
    return SCHEDULES[optim.schedule](step - warmup, optim, max(1, length))


def _exponential(step: int, optim: Optim, length: int) -> float:
    """Source: paper, section 4; continuous and with a floor as in the authors' code."""
    decayed = optim.learning_rate * optim.decay_rate ** (step / optim.decay_steps)
    return max(optim.learning_rate_floor, decayed)


def _cosine(step: int, optim: Optim, length: int) -> float:
    """Source: Loshchilov and Hutter 2017, equation 5, without restarts."""
    share = (1 + math.cos(math.pi * min(step / length, 1.0))) / 2
    return optim.learning_rate_floor + (optim.learning_rate - optim.learning_rate_floor) * share


def _one_cycle(step: int, optim: Optim, length: int) -> float:
    """Source: Smith and Topin 2018, in one descent: from the floor up, and down to the floor, linearly."""
    done, top = min(step / length, 1.0), optim.cycle_up
    share = done / top if done < top else (1 - done) / (1 - top)
    return optim.learning_rate_floor + (optim.learning_rate - optim.learning_rate_floor) * share


def _constant(step: int, optim: Optim, length: int) -> float:
    return optim.learning_rate


SCHEDULES: Mapping[str, Callable[[int, Optim, int], float]] = {
    "exponential": _exponential,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
    "constant": _constant,
}
"""By the names of `optim.schedule`: called with the step since the warm-up and the steps from there."""
