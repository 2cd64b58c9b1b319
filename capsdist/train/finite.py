"""End a run whose numbers are not finite, on all ranks alike.

NaN or infinity in a loss, a gradient, a weight or Adam's state does not go away by itself, and a
checkpoint that holds one is worthless. fp16's own loss scale skips steps whose gradients overflow; those are
no fault.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist

from capsdist.config import Config
from capsdist.errors import RunError
from capsdist.train.state import EngineState, Pieces, Stored, first_not_finite

__all__ = ["check_state", "not_finite"]


def not_finite(config: Config, what: str, step: int, *, saved: bool) -> RunError:
    """Return the error of a run in which `what` is not finite after `step` steps.

    saved: whether the run has a checkpoint. Without one it may begin anew under its name with another
    configuration, with one it may not, and would meet the same again if it went on.
    """
    start = "start another run with its own --train.name and" if saved else "start again with"
    clip = "" if config.optim.max_grad_norm else ", or with --optim.max-grad-norm 1"
    rate = f"a lower --optim.learning-rate than {config.optim.learning_rate:g}"
    return RunError(f"{what} at step {step}; {start} {rate}{clip}")


def check_state(
    state: EngineState, config: Config, step: int, *, saved: bool, world_size: int, device: torch.device
) -> None:
    """Check that all numbers of an engine's `state` are finite, each rank what it holds. Collective.

    Cost: one pass over the memory of weights and optimizer state, a tenth of writing them.

    Raises:
        RunError: see `not_finite`, on all ranks; those that have found a tensor name it.
    """
    found = first_not_finite(_held(state.model)) or first_not_finite(_held(state.optimizer))
    flag = torch.tensor(float(found is not None), device=device)
    if world_size > 1:
        dist.all_reduce(flag)
    if flag.item():
        what = f"{found!r} holds values that are not finite" if found else "weights are not finite"
        raise not_finite(config, what, step, saved=saved)


def _held(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return what this rank holds of the tensors of an engine."""
    values = {name: value.held if isinstance(value, Pieces) else value for name, value in tensors.items()}
    return {name: value for name, value in values.items() if value is not None}
