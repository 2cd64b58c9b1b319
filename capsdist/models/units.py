"""How many hidden units make fully connected layers as large as capsules. Imports nothing."""

from __future__ import annotations

__all__ = ["hidden_units"]


def hidden_units(num_children: int, child_dim: int, num_parents: int, parent_dim: int) -> int:
    """Return the units H, at least 1, for which layers I D -> H -> J E have closest to I J D E parameters.

    They have H (I D + 1) + (H + 1) J E parameters, biases included.
    """
    inputs, outputs = num_children * child_dim, num_parents * parent_dim
    return max(1, round((inputs * outputs - outputs) / (inputs + 1 + outputs)))
