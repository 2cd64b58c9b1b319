"""Passes with an own backward pass, as autograd Functions: differentiable once; `torch.vmap` splits them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

__all__ = [
    "BackwardPass", "Pass", "is_recorded", "is_transformed", "may_be_dual", "refuse_transforms", "refusing",
    "way",
]  # fmt: skip


def refusing(message: str) -> Callable[..., NoReturn]:
    """Return a derivative that raises NotImplementedError with `message`, so that it never passes for 0."""

    def refuse(ctx: Any, *gradients: Any) -> NoReturn:
        raise NotImplementedError(message)

    return refuse


class Pass(torch.autograd.Function):
    """A pass that has no derivative in forward mode; under `torch.vmap` every element is a call.

    A subclass whose users can choose another way sets `jvp` to a `refusing` that names it.
    """

    jvp = staticmethod(refusing("this pass has no derivative in forward mode"))

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Call it for each element of one more dimension, and stack the results."""
        pairs = list(zip(arguments, in_dims, strict=True))

        def element(index: int) -> Any:
            if not info.batch_size:  # none tells what results are like, but one of zeros: a sum over nothing
                return cls.apply(*(a if dim is None else a.sum(dim) for a, dim in pairs))
            return cls.apply(*(a if dim is None else a.select(dim, index) for a, dim in pairs))

        results = [element(index) for index in range(max(1, info.batch_size))]
        if isinstance(results[0], Tensor):
            return torch.stack(results)[: info.batch_size], 0
        stacked = tuple(torch.stack(each)[: info.batch_size] for each in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)


class BackwardPass(Pass):
    """A pass that cannot be differentiated, and says so: the backward pass of another."""

    backward = staticmethod(refusing("this pass is differentiable once, backward"))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing; torch.func asks for it to be said."""


def is_recorded() -> bool:
    """Say whether torch.jit.trace or an exporter to ONNX is at work: neither knows operators of ours."""
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return tracing or torch.onnx.is_in_onnx_export()


def is_transformed() -> bool:
    """Say whether torch.func, or forward-mode AD, is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def refuse_transforms(name: str) -> None:
    """Raise NotImplementedError under torch.func or forward mode: results of a trace would pass for constant.

    name: of the function that has no gradient.
    """
    if is_transformed():
        raise NotImplementedError(
            f"{name} has no gradient and is not for torch.func; call it outside, on ordinary tensors"
        )


def may_be_dual(*tensors: Tensor | None) -> bool:
    """Say whether forward-mode AD may follow one of them: in torch.func its tangent can be out of sight."""
    return forward_ad._current_level >= 0 and any(
        is_functorch_wrapped_tensor(tensor) or forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
        if tensor is not None
    )


def way(function: type[torch.autograd.Function], run: Callable[..., Any]) -> Callable[..., Any]:
    """Return what runs a pass: the Function where something may differentiate it, else the pass itself."""
    return function.apply if torch.is_grad_enabled() or is_transformed() else run
