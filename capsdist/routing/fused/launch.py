"""The launches of a forward and a backward pass. No host waits and no shape depends on data.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, R iterations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capsdist.routing.fused.backward import (
    begin_gradients,
    finish_gradients,
    sum_poses_gradient,
    sum_state_gradient,
    sweep,
)
from capsdist.routing.fused.backward_weights import sum_weights_gradient
from capsdist.routing.fused.forward import finish_totals, normalise, sum_totals
from capsdist.routing.fused.plan import (
    Plan,
    Sizes,
    fits_whole,
    launch_tuned,
    launches_early,
    power_of_two,
)

__all__ = ["Call", "route_backward", "route_forward"]

# Images of a program that adds up parts: many small programs read faster than few large ones.
ROWS = 8
# Parts that such a program reads at once.
MAX_AT_ONCE = 32


@dataclass(frozen=True)
class Call:
    """The operands of one call, as the kernels take them, and its shape.

    Attributes:
        poses: [B, D, I] and weights [J, E, D, I], contiguous, in the dtype of the products.
        priors: [I, J], or None.
    """

    poses: Tensor
    weights: Tensor
    priors: Tensor | None
    none_of_the_above: bool
    sizes: Sizes

    @staticmethod
    def prepare(
        child_poses: Tensor,
        packed_weights: Tensor,
        log_priors: Tensor | None,
        none_of_the_above: bool,
        operand_dtype: torch.dtype,
    ) -> Call:
        """Lay the operands out; copies only what has another dtype or layout, and keeps no copy."""
        num_parents, parent_dim, child_dim, num_children = packed_weights.shape
        return Call(
            child_poses.transpose(1, 2).to(operand_dtype).contiguous(),
            packed_weights.to(operand_dtype).contiguous(),
            None if log_priors is None else log_priors.contiguous(),
            none_of_the_above,
            Sizes(len(child_poses), num_children, num_parents, child_dim, parent_dim, operand_dtype.itemsize),
        )

    @property
    def whole(self) -> bool:
        """Whether a program normalises over all parents by itself."""
        return fits_whole(self.sizes)

    @property
    def uniform_coupling(self) -> float:
        """The coupling of the first iteration without priors."""
        return 1 / (self.sizes.num_parents + self.none_of_the_above)

    def is_coupled(self, iteration: int) -> bool:
        """Whether the coupling of this iteration differs between children, and has to be computed."""
        return iteration > 0 or self.priors is not None

    def parents(self, *leading: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return memory for numbers [..., J, B, E]."""
        sizes = self.sizes
        shape = (*leading, sizes.num_parents, sizes.num_images, sizes.parent_dim)
        return self.poses.new_empty(shape, dtype=dtype)

    def children(self, *leading: int) -> Tensor:
        """Return memory for numbers [..., B, I]."""
        return self.poses.new_empty(
            (*leading, self.sizes.num_images, self.sizes.num_children), dtype=torch.float32
        )

    def constants(self, plan: Plan | None = None) -> dict[str, Any]:
        """Return the compile-time arguments of a kernel over parents or, with a plan, over tiles too."""
        sizes, (child_dim, parent_dim) = self.sizes, self.sizes.padded
        parents = {"J": sizes.num_parents, "E": sizes.parent_dim, "EP": parent_dim}
        launching = {"EARLY": True, "launch_pdl": True} if launches_early() else {"EARLY": False}
        if plan is None:
            return {**parents, **launching, "ROWS": ROWS, "num_warps": 4}
        children = {"I": sizes.num_children, "D": sizes.child_dim, "DP": child_dim}
        tile = {"BT": plan.images, "IT": plan.children, "PRECISION": self.precision}
        tile |= {"num_warps": plan.warps, "num_stages": plan.stages}
        return {**parents, **launching, **children, **tile}

    @property
    def precision(self) -> str:
        """How fp32 products are taken: three TF32 products, or one where torch may do so too."""
        return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"

    @property
    def variant(self) -> str:
        """What makes other programs of the same kernels."""
        dtype = str(self.poses.dtype).removeprefix("torch.")
        return f"{dtype}-{self.precision}{'-priors' * (self.priors is not None)}"

    def tiles(self, plan: Plan) -> tuple[int, int, int]:
        """Return tiles of images, tiles of children, and blocks of parents."""
        sizes = self.sizes
        return (
            -(-sizes.num_images // plan.images),
            -(-sizes.num_children // plan.children),
            -(-sizes.num_parents // plan.parents),
        )

    def rows_grid(self) -> tuple[int, int]:
        """Return the grid of a kernel over parents."""
        return -(-self.sizes.num_images // ROWS), self.sizes.num_parents


def start(kernel: Any, grid: tuple[int, ...], *operands: Any, **constants: Any) -> None:
    """Launch a kernel. Triton's own types know tensors and constants of a kernel only as it sees them."""
    kernel[grid](*operands, **constants)


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
        start(
            finish_totals,
            call.rows_grid(),
            parts,
            bias,
            totals[iteration],
            state,
            operand,
            parent_poses,
            sizes.num_images,
            len(parts),
            1.0 if call.is_coupled(iteration) else call.uniform_coupling,
            AT_ONCE=min(MAX_AT_ONCE, power_of_two(len(parts))),
            HAS_BIAS=bias is not None,
            FIRST=iteration == 0,
            LAST=iteration == iterations - 1,
            **call.constants(),
        )
    return parent_poses, totals


def _sum_totals(call: Call, states: Tensor, iteration: int) -> Tensor:
    """Return the parts [splits, J, B, E] of one iteration's totals."""
    coupled = iteration > 0
    normalisers = None
    if call.is_coupled(iteration) and not call.whole:
        normalisers = call.children()
        _normalise(call, states, None, normalisers, None, iteration)

    def launch(plan: Plan) -> Tensor:
        parts = call.parents(plan.splits)
        images, children, blocks = call.tiles(plan)
        start(
            sum_totals,
            (images, plan.splits, blocks),
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


def _normalise(
    call: Call,
    states: Tensor | None,
    d_totals: Tensor | None,
    normalisers: Tensor,
    means: Tensor | None,
    iteration: int,
) -> None:
    """Write normalisers and, for the backward pass (with d_totals), means of one iteration: both [B, I]."""

    def launch(plan: Plan) -> None:
        start(
            normalise,
            call.tiles(plan)[:2],
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
    call: Call, totals: Tensor, grad: Tensor, poses_dtype: torch.dtype, want_weights: bool, want_bias: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of poses [B, D, I], weights [J, E, D, I], bias [J, E] and priors [I, J].

    Args:
        call: the operands, as in the forward pass.
        totals: [R, J, B, E] from the forward pass.
        grad: [B, J, E], contiguous.
        poses_dtype: of the child poses; their gradient has the same, all others are fp32.
        want_weights: if not, the gradients of weights and priors are None.
        want_bias: if not, that of the bias is None.
    """
    sizes, iterations = call.sizes, len(totals)
    work = Backward.allocate(call, iterations, poses_dtype)
    if sizes.num_images == 0:
        zeros = [None if t is None else t.new_zeros(t.shape).float() for t in (call.weights, call.priors)]
        return work.d_poses, zeros[0], work.d_totals.sum((0, 2)), zeros[1]
    start(
        begin_gradients,
        call.rows_grid(),
        totals,
        grad,
        work.states,
        work.d_totals,
        work.d_operand,
        sizes.num_images,
        iterations,
        **call.constants(),
    )
    d_state = call.parents()
    for iteration in reversed(range(iterations)):
        parts = _step_back(call, work, iteration, iterations)
        if parts is not None:
            before = iteration - 1
            start(
                finish_gradients,
                call.rows_grid(),
                parts,
                totals[before],
                d_state,
                work.d_totals[before],
                work.d_operand[before],
                sizes.num_images,
                len(parts),
                AT_ONCE=min(MAX_AT_ONCE, power_of_two(len(parts))),
                FIRST=iteration == iterations - 1,
                **call.constants(),
            )
    d_weights, d_priors = _sum_weights(call, work) if want_weights else (None, None)
    d_bias = work.d_totals.sum((0, 2)) if want_bias else None
    return work.d_poses, d_weights, d_bias, d_priors


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
        start(
            sum_poses_gradient,
            call.tiles(plan)[:2],
            *pointers, *norms, work.d_before, d_poses, num_images, call.uniform_coupling,
            **flags, **adding, **call.constants(plan),
        )  # fmt: skip

    def launch_state(plan: Plan) -> Tensor:
        parts = call.parents(plan.splits)
        images, children, blocks = call.tiles(plan)
        start(
            sum_state_gradient,
            (images, plan.splits, blocks),
            *pointers, *norms, parts, num_images, -(-children // plan.splits),
            PARENTS=plan.parents, HAS_PRIORS=flags["HAS_PRIORS"], **call.constants(plan),
        )  # fmt: skip
        return parts

    once = not adding["ADD"]  # adding to d_before twice would not be a trial
    if call.whole:
        return launch_tuned("sweep", call.sizes, variant, device, launch_sweep, search=once)
    if call.is_coupled(iteration):
        _normalise(call, state, work.d_operand[iteration], *norms, iteration)
    launch_tuned("poses", call.sizes, variant, device, launch_poses, search=once)
    if iteration == 0:
        return None
    return launch_tuned("state", call.sizes, variant, device, launch_state)


def _sum_weights(call: Call, work: Backward) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of weights [J, E, D, I] and priors [I, J], in fp32."""
    d_weights = torch.empty_like(call.weights, dtype=torch.float32)
    d_priors = None if call.priors is None else torch.empty_like(call.priors, dtype=torch.float32)

    def launch(plan: Plan) -> None:
        _, children, blocks = call.tiles(plan)
        start(
            sum_weights_gradient,
            (children, blocks),
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
