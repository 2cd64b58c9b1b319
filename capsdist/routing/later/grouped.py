"""Grouped dynamic routing: the dimensions of capsules are divided into groups that are routed by themselves.

Source: the capsules of DC-CapsNet, which divide capsules into groups before dynamic routing. The paper leaves
open how groups are joined and scaled. Chosen here: group g has dimensions g D / G to (g + 1) D / G of every
child, routes them to E / G dimensions of every parent with a coupling of its own, and has G times fewer
weights than one matrix; a parent is its groups one after another, divided by sqrt(G), so that its length
stays below 1 and is the root of the mean squared length of its groups.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, G groups.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing.common.checks import check_dims
from capsdist.routing.dynamic.backends import route_call
from capsdist.routing.dynamic.options import RoutingCall, RoutingOptions

__all__ = ["route_grouped"]


def route_grouped(
    child_poses: Tensor,
    grouped_weights: Tensor,
    options: RoutingOptions,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
) -> Tensor:
    """Return the parents of dynamic routing in groups.

    Args:
        child_poses: [B, I, D].
        grouped_weights: [G, J, E / G, D / G, I], packed as `route_packed` takes them, a group after another.
        options: of every group's routing.
        bias: [J, E] added to the totals, or None.
        log_priors: [I, J], the same for all groups, or None.

    Returns:
        [B, J, E] of lengths below 1, in the dtype of `child_poses`.

    Cost: that of `route` of 1 / G as many weights.

    Raises:
        ShapeError: D is not that of the groups together, or as `route`.
    """
    check_dims("child_poses", child_poses, "[B, I, D]", 3)
    check_dims("grouped_weights", grouped_weights, "[G, J, E / G, D / G, I]", 5)
    num_groups, _, part, child_part, _ = grouped_weights.shape
    if child_poses.shape[2] != num_groups * child_part:
        raise ShapeError(
            f"child_poses {list(child_poses.shape)} do not fit {num_groups} groups of {child_part} "
            f"dimensions; pass [B, I, {num_groups * child_part}]"
        )
    biases = [None] * num_groups if bias is None else bias.split(part, dim=1)
    call = RoutingCall(child_poses, grouped_weights[0], options, log_priors=log_priors)
    parts = zip(child_poses.split(child_part, dim=2), grouped_weights, biases, strict=True)
    routed = [
        route_call(replace(call, child_poses=poses, packed_weights=weights, bias=of_group))
        for poses, weights, of_group in parts
    ]
    return torch.cat(routed, 2) / math.sqrt(num_groups)
