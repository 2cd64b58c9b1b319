"""Shared parts of the configuration sections: frozen pydantic models, unknown fields refused, ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict

__all__ = [
    "END_OF_RUN", "MAY_CHANGE", "Bounds", "Change", "Count", "NonNegative", "OptionalCount",
    "Positive", "Section",
]  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """Allowed range of a number: `ge <= value <= le`, `gt < value < lt`; None leaves an end open.

    A field that is None is not compared; of a tuple, every number is. ``tuple[Count, ...]`` is the same as
    ``Annotated[tuple[int, ...], Bounds(ge=1)]``.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None


Count = Annotated[int, Bounds(ge=1)]
OptionalCount = Annotated[int | None, Bounds(ge=1)]
Positive = Annotated[float, Bounds(gt=0)]
NonNegative = Annotated[float, Bounds(ge=0)]


class Section(BaseModel):
    """A part of a configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class Change:
    """Marks a field, or a whole section, that may change when a run is started again: see MAY_CHANGE."""

    moves_end: bool = False


MAY_CHANGE = Change()
"""Mark of what says where and how fast a run computes, and what it reports; the rest decides the result."""
END_OF_RUN = Change(moves_end=True)
"""Mark of what says where a run ends. Trials of a search of different lengths cannot be compared."""
