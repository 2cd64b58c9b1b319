"""The state of an engine, and what its tensors must be: names, shapes, finite numbers, fit values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from capsdist.errors import CheckpointError

__all__ = ["EngineState", "check_tensors", "first_not_finite", "first_unfit"]


@dataclass(frozen=True)
class EngineState:
    """What an engine holds, in the one form that all engines share; tensors on the CPU.

    model: every parameter (fp32 master weights, or their averages) and persistent buffer by its name in the
        network.
    optimizer: `<parameter>/<slot>`: of Adam `exp_avg` and `exp_avg_sq` shaped like the parameter, `step` a
        scalar; of sgd `momentum_buffer`; `trained`, the master weight, where `model` has its average.
    loss_scale: of fp16 (`scale`, `growth_tracker`), else empty.
    """

    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    loss_scale: dict[str, float] = field(default_factory=dict)


def check_tensors(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Check that a state holds exactly the `expected` names and shapes.

    Raises:
        CheckpointError: naming the first tensor that is missing, left over, or of another shape.
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"checkpoint lacks {name!r}; resume with the configuration that wrote it")
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"checkpoint has {name!r} of shape {list(tensors[name].shape)}, the network "
                f"{list(shape)}; resume with the configuration that wrote it"
            )
    if unknown := next((name for name in tensors if name not in expected), None):
        raise CheckpointError(
            f"checkpoint has {unknown!r}, the network has no such tensor; "
            "resume with the configuration that wrote it"
        )


def first_not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, None if all numbers are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor.detach())  # both are NaN if any value is
            if not (math.isfinite(low) and math.isfinite(high)):
                return name
    return None


def first_unfit(slots: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the first slot that holds what Adam never leaves, None if there is none."""
    for name, tensor in slots.items():
        kind = name.rpartition("/")[2]
        if kind == "step" and not (tensor.numel() == 1 and tensor >= 0 and float(tensor).is_integer()):
            return name
        if kind == "exp_avg_sq" and tensor.numel() and not tensor.min() >= 0:  # NaN too
            return name
    return None
