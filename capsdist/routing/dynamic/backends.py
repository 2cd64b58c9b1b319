"""The backends of routing: which ones a call can take, and why not the others.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

from capsdist.errors import ShapeError
from capsdist.routing.common.autograd import is_recorded, is_transformed
from capsdist.routing.dynamic.options import RoutingCall
from capsdist.routing.dynamic.streamed import RECORDED, streamed_refusal

__all__ = ["BACKENDS", "Explanation", "choose"]

BACKENDS = {
    "fused": "kernels for a GPU, which store nothing between an iteration's start and its end",
    "streamed": "never stores votes, and has its own backward pass",
    "reference": "Procedure 1 as it is written, which keeps all votes",
}
"""What each backend is, in the order of preference: the fastest first, but for tiny layers."""


@dataclass(frozen=True)
class Explanation:
    """The backend of a call, and why it does not take each of the others; `str` has a line per backend."""

    backend: str
    others: dict[str, str]

    def __str__(self) -> str:
        """Return one line for each backend, in the order of preference."""
        reasons = {self.backend: f"taken: {BACKENDS[self.backend]}", **self.others}
        return "\n".join(f"{backend:<9}  {reasons[backend]}" for backend in BACKENDS)


def choose(call: RoutingCall) -> Explanation:
    """Return the backend that a call takes: `auto` is the first that it can take.

    Raises:
        ShapeError: the call cannot take the backend that it asks for by name.
    """
    backend = call.options.backend
    taken = None if backend == "auto" else backend
    others: dict[str, str] = {}
    for name in BACKENDS:
        refusal = _refusal(name, call)
        if refusal is not None and name == backend:
            raise ShapeError(f"backend={backend!r} cannot be taken: {refusal}; choose backend='auto'")
        if refusal is None and taken is None:
            taken = name
        elif name != taken:
            others[name] = f"refused: {refusal}" if refusal else f"not needed: {BACKENDS[name]}"
    assert taken is not None  # the reference refuses nothing
    return Explanation(taken, others)


def _refusal(name: str, call: RoutingCall) -> str | None:
    """Return in a few words why a call cannot take a backend, or None."""
    options, asked = call.options, name == call.options.backend
    if name == "reference":
        return None
    if options.recompute != "streamed":
        return f"recompute={options.recompute!r} is for autograd, and this backend has its own backward pass"
    if name == "streamed":
        return streamed_refusal(call)
    if options.gradient != "full":
        return f"gradient={options.gradient!r} is not in its kernels"
    if is_recorded():
        return RECORDED
    if is_transformed():
        return "torch.func and forward mode do not know its kernels"
    if call.child_poses.device.type == "cpu" and not asked:  # most calls of most users: not even imported
        return "child_poses are on the CPU"
    from capsdist.routing.dynamic.fused import fused_refusal

    return fused_refusal(call.child_poses, call.packed_weights, interpreter=asked)
