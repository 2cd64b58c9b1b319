"""The options of EM routing.

Shape letters: B images, N child positions, T child types, P parent positions, C parent types, K places of a
field, S side of a pose matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from operator import index
from typing import Literal, TypedDict, get_args

from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing.common.checks import check_name, is_count, is_real, one_of
from capsdist.routing.common.fields import Fields
from capsdist.routing.common.sharing import Competition

__all__ = ["EM_SCHEMA", "Backend", "EMCall", "EMKeywords", "EMOptions"]

EM_SCHEMA = "int iterations, float inverse_temperature, float decay, float variance_floor, str competition"
"""`EMOptions.numbers` in torch's schema language, as arguments of an operator."""

Backend = Literal["auto", "streamed", "reference"]


class EMKeywords(TypedDict, total=False):
    """The fields of `EMOptions` but `iterations`, as keyword arguments of functions and layers."""

    inverse_temperature: float
    temperature_decay: float
    variance_floor: float
    competition: Competition
    backend: Backend


@dataclass(frozen=True)
class EMOptions:
    """What EM routing is asked for besides its tensors. `route_em` says what each option means.

    Raises:
        ShapeError: an option has a value that no call can have.
    """

    iterations: int = 3
    inverse_temperature: float = 0.01
    temperature_decay: float = 0.95
    variance_floor: float = 1e-4
    competition: Competition = "field"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        """Check the values, and convert them to Python's own types: numpy's are accepted too."""
        if not is_count(self.iterations):
            raise ShapeError(f"iterations={self.iterations!r} must be a whole number of at least 1")
        check_name("competition", self.competition, get_args(Competition))
        if self.backend not in get_args(Backend):
            names = one_of(get_args(Backend))
            raise ShapeError(f"backend={self.backend!r} is no backend of EM routing; choose {names}")
        for name in ("inverse_temperature", "variance_floor"):
            value = getattr(self, name)
            if not (is_real(value) and 0 < value < inf):
                raise ShapeError(f"{name}={value!r} must be a finite number above 0")
        if not (is_real(self.temperature_decay) and 0 <= self.temperature_decay < 1):
            raise ShapeError(f"temperature_decay={self.temperature_decay!r} must be a number in [0, 1)")
        object.__setattr__(self, "iterations", index(self.iterations))
        for name in ("inverse_temperature", "temperature_decay", "variance_floor"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def numbers(self) -> tuple[int, float, float, float, str]:
        """All but the backend, in order, as an operator takes them."""
        annealing = self.inverse_temperature, self.temperature_decay
        return self.iterations, *annealing, self.variance_floor, self.competition

    def lambdas(self) -> list[float]:
        """Return the inverse temperature of each iteration: final (1 - decay^(t + 1)), t from 0."""
        steps = range(1, self.iterations + 1)
        return [self.inverse_temperature * (1 - self.temperature_decay**step) for step in steps]


@dataclass(frozen=True)
class EMCall:
    """The arguments of one call of `route_em`, as every backend takes them."""

    poses: Tensor
    activations: Tensor
    weights: Tensor
    beta_u: Tensor
    beta_a: Tensor
    fields: Fields
    options: EMOptions
    offsets: Tensor | None = None
