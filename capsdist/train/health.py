"""The row `health` of a run: what `capsdist.models.health` says of its capsule layers, now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from capsdist.models.health import LayerHealth, observed

if TYPE_CHECKING:
    from capsdist.train.parts import Parts

__all__ = ["health_row", "numbers_of"]


@contextmanager
def health_row(parts: Parts, step: int, emit: Callable[..., object]) -> Iterator[None]:
    """Do optimizer step number `step`, the first is 1, in this context; emit a row if one is due after it.

    It is of the first microbatch of rank 0. Training is the same to the last bit.
    """
    every = parts.config.train.health_every
    if not every or step % every or parts.engine.rank:
        yield
        return
    with observed(parts.engine.model) as found:
        yield
    emit("health", **numbers_of(found.report()))


def numbers_of(layers: list[LayerHealth]) -> dict[str, float | None]:
    """Return the numbers of all layers as fields of a row, by ``layer/name``."""
    return {
        f"{layer.name}/{name}": value
        for layer in layers
        for name, value in asdict(layer).items()
        if name != "name"
    }
