"""Moving averages of the weights, kept by the optimizer as a slot of its state: `average`.

Source: Polyak and Juditsky 1992, with exponential weights; the ramp of the decay is that of TensorFlow's
``ExponentialMovingAverage``. Persistent buffers are not averaged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:  # a machine with torch alone runs steps
    from capsdist.config.schema import Optim

T = TypeVar("T")

__all__ = ["as_held", "as_stored", "average_weights", "exchange_averages", "share_at"]


def share_at(step: int, optim: Optim) -> float:
    """Return the share of the weights after optimizer step `step` (the first is 0) in their new average.

    1 - d, with the decay d = min(`optim.average_decay`, (1 + step) / (10 + step)). Steps that fp16 skips
    count. 0 without an average.

    Example:
        >>> share_at(0, Optim(average_decay=0.99))
        0.9
    """
    if not optim.average_decay:
        return 0.0
    return 1.0 - min(optim.average_decay, (1 + step) / (10 + step))


@torch.no_grad()
def average_weights(optimizer: torch.optim.Optimizer, weights: Iterable[Tensor]) -> None:
    """Move the averages towards `weights`, which `optimizer` has just updated: a' = a + share (w - a)."""
    held = list(weights)
    averages = [optimizer.state[weight]["average"] for weight in held]
    share = optimizer.param_groups[0]["average_share"]
    if isinstance(share, Tensor):  # see `step_from`
        share = [share.to(weight.dtype) for weight in held]
    torch._foreach_lerp_(averages, held, share)  # pyright: ignore[reportPrivateImportUsage]


@torch.no_grad()
def exchange_averages(optimizer: torch.optim.Optimizer, weights: Iterable[Tensor]) -> None:
    """Exchange the values of `weights` and of their averages; a second call undoes it to the bit."""
    for weight in weights:
        average = optimizer.state[weight]["average"]
        kept = weight.detach().clone()
        weight.copy_(average)
        average.copy_(kept)


def as_stored(model: dict[str, T], slots: dict[str, T]) -> None:
    """Store averages as the weights of `model`, and the trained weights as slots `<parameter>/trained`."""
    for name in [name for name in slots if name.endswith("/average")]:
        parameter = name.removesuffix("/average")
        slots[f"{parameter}/trained"], model[parameter] = model[parameter], slots.pop(name)


def as_held(model: dict[str, T], slots: dict[str, T]) -> None:
    """Undo `as_stored`."""
    for name in [name for name in slots if name.endswith("/trained")]:
        parameter = name.removesuffix("/trained")
        slots[f"{parameter}/average"], model[parameter] = model[parameter], slots.pop(name)
