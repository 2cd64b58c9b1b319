"""The launches of a forward pass. No host waits and no shape depends on data.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, R iterations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capsdist.routing.dynamic.fused import rows
from capsdist.routing.dynamic.fused.call import MAX_AT_ONCE, Call, start
from capsdist.routing.dynamic.fused.forward import finish_totals, normalise, sum_totals
from capsdist.routing.dynamic.fused.plan import Plan, launch_tuned, power_of_two
from capsdist.routing.dynamic.fused.wide import normalise_wide, sum_wide_totals

__all__ = ["route_forward", "write_normalisers"]


def route_forward(
    call: Call, bias: Tensor | None, iterations: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return parent_poses [B, J, E] in `dtype`, and totals [R, J, B, E] in fp32."""
    sizes = call.sizes
    parent_poses = call.poses.new_empty((sizes.num_images, sizes.num_parents, sizes.parent_dim), dtype=dtype)
    totals = call.parents(iterations)
    if sizes.num_images == 0:
        return parent_poses, totals
    state = call.parents()
    operand = state if call.poses.dtype == torch.float32 else call.parents(dtype=call.poses.dtype)
    for iteration in range(iterations):
        parts = _sum_totals(call, operand, iteration)
        memory = (parts, bias, totals[iteration], state, operand, parent_poses)
        scale = 1.0 if call.is_coupled(iteration) else call.uniform_coupling
        first, last = iteration == 0, iteration == iterations - 1
        if call.long_rows:
            rows.finish_totals(*memory, scale=scale, first=first, last=last)
            continue
        start(
            finish_totals,
            call.rows_grid(),
            *memory,
            sizes.num_images,
            len(parts),
            scale,
            AT_ONCE=min(MAX_AT_ONCE, power_of_two(len(parts))),
            HAS_BIAS=bias is not None,
            FIRST=first,
            LAST=last,
            **call.constants(),
        )
    return parent_poses, totals


def _sum_totals(call: Call, states: Tensor, iteration: int) -> Tensor:
    """Return the parts [splits, J, B, E] of one iteration's totals."""
    coupled = iteration > 0
    normalisers = None
    if call.is_coupled(iteration) and not call.whole:
        normalisers = call.children()
        write_normalisers(call, states, None, normalisers, None, iteration)

    def launch(plan: Plan) -> Tensor:
        parts = call.parents(plan.splits)
        images, children, blocks = call.tiles(plan)
        start(
            sum_wide_totals if call.sizes.wide else sum_totals,
            (images * blocks, plan.splits),
            call.poses,
            call.weights,
            states,
            call.priors,
            normalisers,
            parts,
            call.sizes.num_images,
            -(-children // plan.splits),
            PARENTS=plan.parents,
            NONE=call.none_of_the_above,
            COUPLED=coupled,
            HAS_PRIORS=call.priors is not None,
            **call.constants(plan),
        )
        return parts

    variant = f"{call.variant}{'-first' * (not coupled)}"
    return launch_tuned("totals", call.sizes, variant, call.poses.device, launch)


def write_normalisers(
    call: Call,
    states: Tensor | None,
    d_totals: Tensor | None,
    normalisers: Tensor,
    means: Tensor | None,
    iteration: int,
) -> None:
    """Write normalisers and, for the backward pass (with d_totals), means of one iteration: both [B, I]."""

    def launch(plan: Plan) -> None:
        images, children, _ = call.tiles(plan)
        start(
            normalise_wide if call.sizes.wide else normalise,
            (images * children,),
            call.poses,
            call.weights,
            states,
            d_totals,
            call.priors,
            normalisers,
            means,
            call.sizes.num_images,
            NONE=call.none_of_the_above,
            COUPLED=iteration > 0,
            HAS_PRIORS=call.priors is not None,
            SLOPES=d_totals is not None,
            **call.constants(plan),
        )

    variant = f"{call.variant}{'-first' * (iteration == 0)}{'-slopes' * (d_totals is not None)}"
    launch_tuned("normalise", call.sizes, variant, call.poses.device, launch)
