"""Adam and its learning rate: one definition, used by every engine.

Source: paper, section 4 (Adam with TensorFlow's defaults, exponentially decaying learning rate); decay 0.96
a 2,000 steps, continuous, with floor 1e-6, as in the authors' code. TensorFlow adds epsilon before it
corrects the bias of the second moment (Kingma and Ba 2015, section 2: "epsilon hat"), PyTorch after.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # a machine with torch alone runs steps
    from capsdist.config.schema import Optim

__all__ = ["SLOTS", "build_optimizer", "epsilon_at", "learning_rate_at", "set_step"]

SLOTS = ("exp_avg", "exp_avg_sq")
"""Adam's state of a parameter, besides its step count: first and second moment, shaped like the parameter."""


def learning_rate_at(step: int, optim: Optim) -> float:
    """Return the learning rate of optimizer step `step` (the first is 0).

    A pure function of the step: a resumed run needs no state of a scheduler. Steps that fp16 skips for
    overflow count, because the schedule follows the data.

    Example:
        >>> learning_rate_at(2000, Optim())
        0.00096
    """
    decayed = optim.learning_rate * optim.decay_rate ** (step / optim.decay_steps)
    return max(optim.learning_rate_floor, decayed)


def epsilon_at(adam_step: int, optim: Optim) -> float:
    """Return the epsilon that PyTorch's Adam needs in its step number `adam_step`, the first is 1.

    TensorFlow's update lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + epsilon) is PyTorch's with
    epsilon / sqrt(1 - beta2^t). Adam's own steps count: those that fp16 skips for overflow do not.

    Example:
        >>> epsilon_at(1, Optim(epsilon_placement="tensorflow"))
        3.162277660168371e-07
    """
    if optim.epsilon_placement == "pytorch":
        return optim.epsilon
    return optim.epsilon / math.sqrt(1 - optim.beta2**adam_step)


def set_step(optimizer: torch.optim.Optimizer, learning_rate: float, epsilon: float) -> None:
    """Set what Adam's next step takes."""
    for group in optimizer.param_groups:
        group["lr"], group["eps"] = learning_rate, epsilon


def build_optimizer(parameters: Iterable[torch.nn.Parameter], optim: Optim) -> torch.optim.Adam:
    """Return torch's fused Adam over `parameters` as one group, without weight decay.

    Fused: one pass over memory instead of about eight, and on a GPU no wait for the loss scaler.
    """
    return torch.optim.Adam(
        list(parameters),
        lr=optim.learning_rate,
        betas=(optim.beta1, optim.beta2),
        eps=optim.epsilon,
        fused=True,
    )
