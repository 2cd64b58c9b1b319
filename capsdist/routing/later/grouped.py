"""Grouped dynamic routing: groups of children are routed by themselves, and their parents are added up.

Source: Yuan, Ren, "Divide-and-conquer routing for learning heterogeneous individualized capsules" (PLoS ONE
20(7), 2025; DC-CapsNet), and its public code: every group of primary capsules has dynamic routing to all
parents, with logits, softmax and squash of its own, and v_j = sum over groups of squash(s_gj). Log priors are
learned there, and 0 at first. A bias, which is not there, is added to the totals of every group here.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, G groups.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing.common.checks import check_dims
from capsdist.routing.dynamic.backends import route_call
from capsdist.routing.dynamic.options import RoutingCall, RoutingOptions
from capsdist.routing.dynamic.trace import Trace, trace_routing

__all__ = ["route_grouped", "trace_grouped"]


def route_grouped(
    child_poses: Tensor,
    grouped_weights: Tensor,
    options: RoutingOptions,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
) -> Tensor:
    """Return the sum over groups of the parents of dynamic routing.

    Args:
        child_poses: [B, I, D]; group g has the children from g I / G to (g + 1) I / G.
        grouped_weights: [G, J, E, D, I / G], packed as `route_packed` takes them, a group after another.
        options: of every group's routing.
        bias: [J, E] added to the totals of every group, or None.
        log_priors: [I, J], or None.

    Returns:
        [B, J, E] of lengths below G, in the dtype of `child_poses`.

    Cost: that of `route` in G calls, which are smaller.

    Raises:
        ShapeError: there are not as many children as in all groups together, or as `route`.
    """
    calls = _calls(child_poses, grouped_weights, options, bias, log_priors)
    return torch.stack([route_call(call) for call in calls]).sum(0)


def trace_grouped(
    child_poses: Tensor,
    grouped_weights: Tensor,
    options: RoutingOptions,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
) -> Trace:
    """Route as `route_grouped` does and return what each iteration did, in fp32 (float64 in float64).

    Each number is the mean over groups, which is that over all children, because groups are of one size.

    Raises:
        ShapeError, NotImplementedError: as `route_grouped` and `trace_routing`.

    Cost: that of `trace_routing` in G calls, which are smaller.
    """
    traces = [
        trace_routing(
            call.child_poses,
            call.packed_weights,
            options.iterations,
            bias=call.bias,
            log_priors=call.log_priors,
            none_of_the_above=options.none_of_the_above,
        )
        for call in _calls(child_poses, grouped_weights, options, bias, log_priors)
    ]
    return Trace(*(torch.stack(each).mean(0) for each in zip(*traces, strict=True)))


def _calls(
    child_poses: Tensor,
    grouped_weights: Tensor,
    options: RoutingOptions,
    bias: Tensor | None,
    log_priors: Tensor | None,
) -> list[RoutingCall]:
    """Return the call of each group; raise ShapeError where operands do not fit."""
    check_dims("child_poses", child_poses, "[B, I, D]", 3)
    check_dims("grouped_weights", grouped_weights, "[G, J, E, D, I / G]", 5)
    num_groups, part = grouped_weights.shape[0], grouped_weights.shape[4]
    named = {"child_poses": (child_poses, 1)} | (
        {} if log_priors is None else {"log_priors": (log_priors, 0)}
    )
    for name, (tensor, dim) in named.items():
        if tensor.shape[dim] != num_groups * part:
            raise ShapeError(
                f"{name} {list(tensor.shape)} do not fit {num_groups} groups of {part} children; "
                f"pass I = {num_groups * part}"
            )
    priors = [None] * num_groups if log_priors is None else log_priors.split(part)
    call = RoutingCall(child_poses, grouped_weights[0], options, bias=bias)
    parts = zip(child_poses.split(part, dim=1), grouped_weights, priors, strict=True)
    return [
        replace(call, child_poses=poses, packed_weights=weights, log_priors=of_group)
        for poses, weights, of_group in parts
    ]
