"""Say which form a call of any routing algorithm of class capsules takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from capsdist.algorithms import find_algorithm
from capsdist.routing.common.explanation import Explanation
from capsdist.routing.dynamic.api import explain as explain_dynamic

__all__ = ["explain"]


def explain(
    child_poses: Tensor, weights: Tensor, iterations: int = 3, *, algorithm: str = "dynamic", **options: Any
) -> Explanation:
    """Say which backend or form an algorithm takes for these arguments, and why not the others.

    Computes nothing.

    Args:
        child_poses, weights, iterations, options: as `route` takes them, for `dynamic`, `average` and one
            group of `grouped`; for other algorithms `backend` alone counts. Of packed weights pass
            `unpack_weights(packed_weights)`.
        algorithm: as `routing.algorithm`: a built-in name or the import path of an `Algorithm`.

    Raises:
        ShapeError: as `route`, or the form that is asked for cannot be taken. ConfigError: no such algorithm.

    Example:
        >>> import torch
        >>> print(explain(torch.randn(2, 6, 8), torch.randn(6, 10, 8, 16)))
        fused      refused: child_poses are on the CPU
        streamed   taken: never stores votes, and has its own backward pass
        reference  not needed: Procedure 1 as it is written, which keeps all votes
        >>> explain(torch.randn(2, 6, 8), torch.randn(6, 10, 8, 16), algorithm="attention").backend
        'streamed'
    """
    if algorithm == "dynamic":  # without a look-up, so that compilers follow it
        return explain_dynamic(child_poses, weights, iterations, **options)
    return find_algorithm(algorithm).explain(child_poses, weights, iterations, **options)
