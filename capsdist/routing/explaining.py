"""Say which form a call of any routing takes: of class capsules, between grids, or by EM."""

from __future__ import annotations

from typing import Any, overload

from torch import Tensor

from capsdist.algorithms import find_algorithm
from capsdist.routing.common.explanation import Explanation
from capsdist.routing.dynamic.api import explain as explain_dynamic
from capsdist.routing.dynamic.fields.api import explain_fields
from capsdist.routing.dynamic.fields.call import FieldCall
from capsdist.routing.em.api import explain_em
from capsdist.routing.em.options import EMCall

__all__ = ["explain"]


@overload
def explain(call: FieldCall | EMCall, /) -> Explanation: ...
@overload
def explain(
    child_poses: Tensor, weights: Tensor, iterations: int = 3, *, algorithm: str = "dynamic", **options: Any
) -> Explanation: ...
def explain(
    child_poses: Tensor | FieldCall | EMCall,
    weights: Any = None,
    iterations: int = 3,
    *,
    algorithm: str = "dynamic",
    **options: Any,
) -> Explanation:
    """Say which backend or form an algorithm takes for these arguments, and why not the others.

    Computes nothing.

    Args:
        child_poses, weights, iterations, options: as `route` takes them, for `dynamic`, `average` and one
            group of `grouped`; for other algorithms `backend` alone counts. Of packed weights pass
            `unpack_weights(packed_weights)`. Or one call of routing between grids, a `FieldCall`, or of EM
            routing, an `EMCall`, alone.
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
    if isinstance(child_poses, FieldCall):
        return explain_fields(child_poses)
    if isinstance(child_poses, EMCall):
        return explain_em(child_poses)
    if algorithm == "dynamic":  # without a look-up, so that compilers follow it
        return explain_dynamic(child_poses, weights, iterations, **options)
    return find_algorithm(algorithm).explain(child_poses, weights, iterations, **options)
