"""The backends of routing, and which of them a call can take, or why not.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Any, Literal, get_args

from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing.common.autograd import RECORDED, is_recorded, is_transformed
from capsdist.routing.common.checks import one_of
from capsdist.routing.dynamic.streamed import streamed_refusal
from capsdist.routing.dynamic.streamed_passes import Gradient

__all__ = ["BACKENDS", "Backend", "Call", "Explanation", "Recompute", "check_backend", "choose"]

Backend = Literal["auto", "fused", "streamed", "reference"]
Recompute = Literal["streamed", "iterations", "none"]

BACKENDS = {
    "fused": "kernels for a GPU, which store nothing between an iteration's start and its end",
    "streamed": "never stores votes, and has its own backward pass",
    "reference": "Procedure 1 as it is written, which keeps all votes",
}
"""What each backend is, in the order of preference: the fastest first, but for tiny layers."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call of `route`; `packed_weights` [J, E, D, I] may be a view of any layout."""

    child_poses: Tensor
    packed_weights: Tensor
    iterations: int
    bias: Tensor | None
    log_priors: Tensor | None
    none_of_the_above: bool
    gradient: Gradient
    recompute: Recompute

    @property
    def options(self) -> dict[str, Any]:
        """What all backends are asked for besides operands, in Python's own types."""
        return {"iterations": index(self.iterations), "none_of_the_above": bool(self.none_of_the_above)}


@dataclass(frozen=True)
class Explanation:
    """Which backend a call takes, and why it does not take each of the others; `str` is a line for each backend."""

    backend: str
    others: dict[str, str]

    def __str__(self) -> str:
        """Return one line for each backend, in the order of preference."""
        reasons = {self.backend: f"taken: {BACKENDS[self.backend]}", **self.others}
        return "\n".join(f"{backend:<9}  {reasons[backend]}" for backend in BACKENDS)


def choose(backend: str, call: Call) -> Explanation:
    """Return the backend that `backend` stands for: `auto` is the first that the call can take.

    Raises:
        ShapeError: there is no backend of that name, or the call cannot take it.
    """
    check_backend(backend)
    taken = None if backend == "auto" else backend
    others: dict[str, str] = {}
    for name in BACKENDS:
        refusal = _refusal(name, call, asked=name == backend)
        if refusal is not None and name == backend:
            raise ShapeError(f"backend={backend!r} cannot be taken: {refusal}; choose backend='auto'")
        if refusal is None and taken is None:
            taken = name
        elif name != taken:
            others[name] = f"refused: {refusal}" if refusal else f"not needed: {BACKENDS[name]}"
    assert taken is not None  # the reference refuses nothing
    return Explanation(taken, others)


def check_backend(backend: object) -> None:
    """Raise ShapeError unless there is a backend of that name, `auto` included."""
    if backend not in get_args(Backend):
        raise ShapeError(f"backend={backend!r} is no backend of routing; choose {one_of(get_args(Backend))}")


def _refusal(name: str, call: Call, *, asked: bool) -> str | None:
    """Return in a few words why a call cannot take a backend, or None."""
    if name == "reference":
        return None
    if call.recompute != "streamed":
        return f"recompute={call.recompute!r} is for autograd, and this backend has its own backward pass"
    if name == "streamed":
        return streamed_refusal(call.child_poses, call.packed_weights, call.bias, call.log_priors)
    if call.gradient != "full":
        return f"gradient={call.gradient!r} is not in its kernels"
    if is_recorded():
        return RECORDED
    if is_transformed():
        return "torch.func and forward mode do not know its kernels"
    if call.child_poses.device.type == "cpu" and not asked:  # most calls of most users: not even imported
        return "child_poses are on the CPU"
    from capsdist.routing.dynamic.fused import fused_refusal

    return fused_refusal(call.child_poses, call.packed_weights, interpreter=asked)
