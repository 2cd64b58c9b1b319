"""The launches of a backward pass. No host waits and no shape depends on data.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, R iterations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from capsdist.routing.dynamic.fused import rows
from capsdist.routing.dynamic.fused.backward import (
    begin_gradients,
    finish_gradients,
    sum_poses_gradient,
    sum_state_gradient,
    sweep,
)
from capsdist.routing.dynamic.fused.backward_weights import sum_weights_gradient
from capsdist.routing.dynamic.fused.call import MAX_AT_ONCE, Call, start
from capsdist.routing.dynamic.fused.launch_forward import write_normalisers
from capsdist.routing.dynamic.fused.plan import Plan, launch_tuned, power_of_two
from capsdist.routing.dynamic.fused.wide import (
    sum_wide_poses_gradient,
    sum_wide_state_gradient,
    sum_wide_weights_gradient,
)

__all__ = ["route_backward"]


@dataclass(frozen=True)
class Backward:
    """Memory of a backward pass.

    Attributes:
        states: [R - 1, J, B, E] V after each iteration but the last, in the dtype of the products.
        d_totals: [R, J, B, E] ds in fp32; d_operand: the same in the dtype of the products.
        normalisers, means: [R, B, I] two numbers for each child's softmax, as `normalise` writes them.
        d_before: [B, D, I] fp32, the poses' gradient of iterations already done.
        d_poses: [B, D, I] in the poses' dtype.
    """

    states: Tensor
    d_totals: Tensor
    d_operand: Tensor
    normalisers: Tensor
    means: Tensor
    d_before: Tensor
    d_poses: Tensor

    @staticmethod
    def allocate(call: Call, iterations: int, poses_dtype: torch.dtype) -> Backward:
        """Reserve all of it; what has the same dtype as the products shares memory."""
        dtype = call.poses.dtype
        d_totals = call.parents(iterations)
        d_poses = torch.empty_like(call.poses, dtype=poses_dtype)
        fp32 = poses_dtype == torch.float32 or iterations == 1  # one iteration adds to nothing
        return Backward(
            states=call.parents(iterations - 1, dtype=dtype),
            d_totals=d_totals,
            d_operand=d_totals if dtype == torch.float32 else call.parents(iterations, dtype=dtype),
            normalisers=call.children(iterations),
            means=call.children(iterations),
            d_before=d_poses if fp32 else torch.empty_like(d_poses, dtype=torch.float32),
            d_poses=d_poses,
        )


def route_backward(
    call: Call,
    totals: Tensor,
    grad: Tensor,
    *,
    poses_dtype: torch.dtype,
    weights_dtype: torch.dtype | None,
    want_bias: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of poses [B, D, I], weights [J, E, D, I], bias [J, E] and priors [I, J].

    Args:
        call: the operands, as in the forward pass.
        totals: [R, J, B, E] from the forward pass.
        grad: [B, J, E], contiguous.
        poses_dtype: of the child poses and their gradient.
        weights_dtype: of the weights and their gradient; if None, the gradients of weights and priors are
            None. Those of priors and bias are fp32.
        want_bias: if not, that of the bias is None.
    """
    sizes, iterations = call.sizes, len(totals)
    work = Backward.allocate(call, iterations, poses_dtype)
    if sizes.num_images > 0:
        _walk_back(call, work, totals, grad)
    d_weights = d_priors = None
    if weights_dtype is not None:
        d_weights, d_priors = _sum_weights(call, work, weights_dtype)
    d_bias = work.d_totals.sum((0, 2)) if want_bias else None
    return work.d_poses, d_weights, d_bias, d_priors


def _walk_back(call: Call, work: Backward, totals: Tensor, grad: Tensor) -> None:
    """Write the poses' gradient and ds of every iteration, from the last to the first."""
    sizes, iterations = call.sizes, len(totals)
    memory = (totals, grad, work.states, work.d_totals, work.d_operand)
    if call.long_rows:
        rows.begin_gradients(*memory)
    else:
        grid = call.rows_grid()
        start(begin_gradients, grid, *memory, sizes.num_images, iterations, **call.constants())
    d_state = call.parents()
    for iteration in reversed(range(iterations)):
        parts = _step_back(call, work, iteration, iterations)
        if parts is None:
            continue
        before, first = iteration - 1, iteration == iterations - 1
        memory = (parts, totals[before], d_state, work.d_totals[before], work.d_operand[before])
        if call.long_rows:
            rows.finish_gradients(*memory, first=first)
            continue
        start(
            finish_gradients,
            call.rows_grid(),
            *memory,
            sizes.num_images,
            len(parts),
            AT_ONCE=min(MAX_AT_ONCE, power_of_two(len(parts))),
            FIRST=first,
            **call.constants(),
        )


def _step_back(call: Call, work: Backward, iteration: int, iterations: int) -> Tensor | None:
    """Add one iteration's gradient of the poses; return the parts of dV, or None for the first iteration."""
    state = work.states[iteration - 1] if iteration > 0 else None
    pointers = (call.poses, call.weights, state, work.d_operand[iteration], call.priors)
    norms = (work.normalisers[iteration], work.means[iteration])
    d_poses = work.d_poses if iteration == 0 else work.d_before
    flags = {"COUPLED": iteration > 0, "HAS_PRIORS": call.priors is not None}
    adding = {"ADD": iteration < iterations - 1}
    variant = f"{call.variant}{'-first' * (iteration == 0)}"
    device, num_images = call.poses.device, call.sizes.num_images

    def launch_sweep(plan: Plan) -> Tensor | None:
        parts = call.parents(plan.splits) if iteration > 0 else None
        images, children, _ = call.tiles(plan)
        start(
            sweep,
            (images, plan.splits),
            *pointers, *norms, work.d_before, d_poses, parts, num_images, -(-children // plan.splits),
            call.uniform_coupling, NONE=call.none_of_the_above, **flags, **adding, **call.constants(plan),
        )  # fmt: skip
        return parts

    def launch_poses(plan: Plan) -> None:
        images, children, _ = call.tiles(plan)
        start(
            sum_wide_poses_gradient if call.sizes.wide else sum_poses_gradient,
            (images * children * call.sizes.blocks[0],),
            *pointers, *norms, work.d_before, d_poses, num_images, call.uniform_coupling,
            **flags, **adding, **call.constants(plan),
        )  # fmt: skip

    def launch_state(plan: Plan) -> Tensor:
        parts = call.parents(plan.splits)
        images, children, blocks = call.tiles(plan)
        start(
            sum_wide_state_gradient if call.sizes.wide else sum_state_gradient,
            (images * blocks, plan.splits),
            *pointers, *norms, parts, num_images, -(-children // plan.splits),
            PARENTS=plan.parents, HAS_PRIORS=flags["HAS_PRIORS"], **call.constants(plan),
        )  # fmt: skip
        return parts

    repeatable = not adding["ADD"] or d_poses is not work.d_before  # a search must not add to it twice
    if call.whole:
        return launch_tuned("sweep", call.sizes, variant, device, launch_sweep, search=repeatable)
    if call.is_coupled(iteration):
        write_normalisers(call, state, work.d_operand[iteration], *norms, iteration)
    launch_tuned("poses", call.sizes, variant, device, launch_poses, search=repeatable)
    if iteration == 0:
        return None
    return launch_tuned("state", call.sizes, variant, device, launch_state)


def _sum_weights(call: Call, work: Backward, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of weights [J, E, D, I] in `dtype`, and priors [I, J] in fp32."""
    d_weights = torch.empty_like(call.weights, dtype=dtype)
    d_priors = None if call.priors is None else torch.empty_like(call.priors, dtype=torch.float32)
    if call.sizes.num_images == 0:
        return d_weights.zero_(), None if d_priors is None else d_priors.zero_()

    def launch(plan: Plan) -> None:
        _, children, blocks = call.tiles(plan)
        start(
            sum_wide_weights_gradient if call.sizes.wide else sum_weights_gradient,
            (children * blocks * call.sizes.blocks[0],),
            call.poses,
            call.weights,
            work.states,
            work.d_operand,
            call.priors,
            work.normalisers,
            work.means,
            d_weights,
            d_priors,
            call.sizes.num_images,
            len(work.d_totals),
            call.uniform_coupling,
            PARENTS=plan.parents,
            HAS_PRIORS=call.priors is not None,
            **call.constants(plan),
        )

    launch_tuned("weights", call.sizes, call.variant, call.poses.device, launch)
    return d_weights, d_priors
