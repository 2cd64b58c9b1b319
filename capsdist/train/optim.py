"""Adam and its learning rate: one definition, used by every engine.

Source: paper, section 4 (Adam with TensorFlow's defaults, exponentially decaying learning rate); decay 0.96
a 2,000 steps, continuous, with floor 1e-6, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from capsdist.config.schema import Optim

__all__ = ["SLOTS", "build_optimizer", "learning_rate_at"]

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
