"""Checks of tensors that all functions share; a refusal is one line."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._C._functorch import is_legacy_batchedtensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from capsdist.errors import ShapeError

__all__ = ["check_class_numbers", "check_tensor", "has_values_at_hand"]


def check_tensor(name: str, tensor: object) -> None:
    """Raise ShapeError unless it is a tensor."""
    if isinstance(tensor, fx.Proxy):
        raise ShapeError(
            f"{name} is a Proxy of torch.fx.symbolic_trace, which has no shape to check; "
            "call torch.export.export, or make the capsule layers leaves of a torch.fx.Tracer"
        )
    if not isinstance(tensor, Tensor):
        raise ShapeError(f"{name} is of type {type(tensor).__name__}; pass a torch.Tensor")


def check_class_numbers(name: str, numbers: Tensor, num_classes: int) -> None:
    """Raise ShapeError for a class number outside of [0, num_classes), where looking costs nothing.

    numbers: [B], or [B, K] with -1 where an image has fewer than K classes.

    On a GPU it would make the host wait, and compilers, exporters, torch.func and fake tensors have no values
    to look at: there torch's own error, or none, is what follows.
    """
    least = 0 if numbers.dim() == 1 else -1
    if not has_values_at_hand(numbers) or not numbers.numel():
        return
    lowest, highest = map(int, torch.aminmax(numbers))
    if lowest < least or highest >= num_classes:
        wrong = lowest if lowest < least else highest
        place = ", ".join(map(str, (numbers == wrong).nonzero()[0].tolist()))
        none = ", or -1 for no class" if least else ""
        raise ShapeError(
            f"{name}[{place}] = {wrong} is no class of {num_classes}; "
            f"pass numbers from 0 to {num_classes - 1}{none}"
        )


def has_values_at_hand(tensor: Tensor) -> bool:
    """Say whether it is a plain tensor on the CPU that nothing but autograd looks at."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch._C._are_functorch_transforms_active()
        or is_legacy_batchedtensor(tensor)  # of is_grads_batched
        or tensor.device.type != "cpu"
        or type(tensor) is not Tensor
        or _get_current_dispatch_mode() is not None
    )
