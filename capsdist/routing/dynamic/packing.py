"""The fast layout of the weights: packed [J, E, D, I], children innermost.

Element-wise work on the children then runs along contiguous memory, and the weights of one parent are a
matrix [E, D * I] that a matrix product takes without a copy.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["pack_weights", "unpack_weights"]


def pack_weights(weights: Tensor) -> Tensor:
    """Return weights [I, J, D, E] as contiguous [J, E, D, I]; a copy unless they are a packed view."""
    return weights.permute(1, 3, 2, 0).contiguous()


def unpack_weights(packed_weights: Tensor) -> Tensor:
    """Return packed weights [J, E, D, I] as a view [I, J, D, E]; never a copy."""
    return packed_weights.permute(3, 0, 2, 1)
