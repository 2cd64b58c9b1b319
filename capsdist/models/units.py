"""Counts that layers and their costs share: hidden units, passes of routing. Imports nothing."""

from __future__ import annotations

__all__ = ["hidden_units", "passes_of"]


def hidden_units(num_children: int, child_dim: int, num_parents: int, parent_dim: int) -> int:
    """Return the units H, at least 1, for which layers I D -> H -> J E have closest to I J D E parameters.

    They have H (I D + 1) + (H + 1) J E parameters, biases included.
    """
    inputs, outputs = num_children * child_dim, num_parents * parent_dim
    return max(1, round((inputs * outputs - outputs) / (inputs + 1 + outputs)))


def passes_of(iterations: int, num_layers: int, *, concurrent: bool) -> list[int]:
    """Return how many passes each of `num_layers` layers of inverted attention makes, the lowest first.

    Concurrent layers read poses of the pass before, so a change needs as many passes to arrive at the top as
    there are layers above: later passes of lower layers would be thrown away, and are left out.
    """
    if not concurrent:
        return [iterations] * num_layers
    return [max(1, iterations - above) for above in reversed(range(num_layers))]
