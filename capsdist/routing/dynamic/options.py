"""The options of dynamic routing, and one call of it: what every backend is given.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Literal, TypedDict, get_args

from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing.common.checks import check_flag, check_name, is_count, one_of

__all__ = [
    "Backend", "Gradient", "Recompute", "ReferenceRecompute", "RoutingCall", "RoutingKeywords",
    "RoutingOptions", "check_iterations",
]  # fmt: skip

Gradient = Literal["full", "last"]
Recompute = Literal["streamed", "iterations", "none"]
ReferenceRecompute = Literal["none", "iterations"]
Backend = Literal["auto", "fused", "streamed", "reference"]


class RoutingKeywords(TypedDict, total=False):
    """The fields of `RoutingOptions` but `iterations`, as keyword arguments of functions and layers."""

    none_of_the_above: bool
    gradient: Gradient
    recompute: Recompute
    backend: Backend


@dataclass(frozen=True)
class RoutingOptions:
    """What dynamic routing is asked for besides its tensors. `route` says what each option means.

    Raises:
        ShapeError: an option has a value that no call can have.
    """

    iterations: int = 3
    none_of_the_above: bool = False
    gradient: Gradient = "full"
    recompute: Recompute = "streamed"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        """Check the values, and convert them to Python's own types: numpy's are accepted too."""
        check_iterations(self.iterations)
        check_flag("none_of_the_above", self.none_of_the_above)
        check_name("gradient", self.gradient, get_args(Gradient))
        check_name("recompute", self.recompute, get_args(Recompute))
        if self.backend not in get_args(Backend):
            names = one_of(get_args(Backend))
            raise ShapeError(f"backend={self.backend!r} is no backend of routing; choose {names}")
        object.__setattr__(self, "iterations", index(self.iterations))
        object.__setattr__(self, "none_of_the_above", bool(self.none_of_the_above))


@dataclass(frozen=True)
class RoutingCall:
    """The arguments of one call of `route_packed`.

    child_poses [B, I, D]; packed_weights [J, E, D, I], which may be a view of any layout; bias [J, E];
    log_priors [I, J].
    """

    child_poses: Tensor
    packed_weights: Tensor
    options: RoutingOptions
    bias: Tensor | None = None
    log_priors: Tensor | None = None


def check_iterations(iterations: object) -> None:
    """Raise ShapeError unless there is an iteration."""
    if not is_count(iterations):
        raise ShapeError(f"iterations={iterations!r} must be a whole number of at least 1; the paper has 3")
