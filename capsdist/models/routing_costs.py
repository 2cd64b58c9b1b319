"""What class capsules cost in a training step, by the backend that computes their routing.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension, R iterations.
"""

from __future__ import annotations

from capsdist.config.cost import Bytes, LayerCost, Numbers, Routed
from capsdist.config.models import Routing

__all__ = ["routing_cost"]

_FP32 = 4
_PLANNED_IMAGES = 64  # tiles of more images have the same size


def routing_cost(
    name: str, sizes: Routed, routing: Routing, *, bias: bool = False, log_priors: bool = False
) -> LayerCost:
    """Return the cost of class capsules [B, I, D] -> [B, J, E].

    A product has 2 I J D E FLOP. `streamed` and `fused`: 2R - 1 products forward; 4R - 2 backward; R - 1
    again in the backward pass, 2 (R - 1) more where parents are cut into pieces. The reference: one for the
    votes, R products of 2 I J E for totals, R - 1 for agreements, twice as many backward; with
    `recompute="iterations"` totals and agreements again.
    """
    weights = sizes.children * sizes.parents * sizes.child_dim * sizes.parent_dim
    parameters = weights + bias * sizes.parents * sizes.parent_dim
    parameters += log_priors * sizes.children * sizes.parents
    stored = routing.backend == "reference" or routing.recompute != "streamed"
    function = _reference if stored else _streamed
    return function(name, sizes, routing, weights=weights, parameters=parameters, log_priors=log_priors)


def _streamed(
    name: str, sizes: Routed, routing: Routing, *, weights: int, parameters: int, log_priors: bool
) -> LayerCost:
    from capsdist.routing.dynamic.products import (
        backward_products,
        forward_products,
        model_backward_products,
    )

    product, poses = 2 * weights, sizes.children * sizes.child_dim
    parents = sizes.parents * sizes.parent_dim
    last = routing.gradient == "last" and sizes.iterations > 1
    iterations, uniform = (1, False) if last else (sizes.iterations, not log_priors)
    model = model_backward_products(sizes.iterations, last_only=routing.gradient == "last")
    backward = backward_products(iterations, uniform=uniform)
    scratch, cut = _scratch(sizes)
    backward += 2 * (iterations - uniform) * cut
    return LayerCost(
        name,
        parameters=parameters,
        forward_flop=product * forward_products(sizes.iterations),
        backward_flop=product * model,
        recomputed_flop=product * (backward - model),
        saved=Numbers(narrow=poses, wide=sizes.iterations * parents),
        forward_peaks=(Bytes(_FP32 * 2 * parents, scratch),),
        backward_peaks=(Bytes(_FP32 * (poses + 5 * parents), scratch + _FP32 * parameters),),
        routed=sizes,
    )


def _scratch(sizes: Routed) -> tuple[int, bool]:
    """Return the bytes of the buffers of a chunk on a CPU, and whether parents are cut into pieces."""
    from torch import Size

    from capsdist.routing.common.tiling import chunk_bytes
    from capsdist.routing.dynamic.cuts import plan_tiles

    shape = Size((sizes.parents, sizes.parent_dim, sizes.child_dim, sizes.children))
    plan = plan_tiles(_PLANNED_IMAGES, shape, rows=2, itemsize=_FP32, poses_itemsize=_FP32, device="cpu")
    copies = 0
    if plan.children < sizes.children:
        copies = 2 * _FP32 * plan.parents * sizes.parent_dim * sizes.child_dim * plan.children
    return chunk_bytes("cpu") + copies, plan.parents < sizes.parents


def _reference(
    name: str, sizes: Routed, routing: Routing, *, weights: int, parameters: int, log_priors: bool
) -> LayerCost:
    product, small = 2 * weights, 2 * sizes.children * sizes.parents * sizes.parent_dim
    votes, logits = small // 2, sizes.children * sizes.parents
    rounds, last = sizes.iterations, routing.gradient == "last"
    passes = 2 * rounds - 1  # totals, and agreements before all but the first
    if last:
        backward = 1 + (log_priors or False)
        again = 1 + (rounds > 1)
    else:
        backward = 2 * passes - (not log_priors)  # the first coupling is a constant
        again = passes
    poses, parents = sizes.children * sizes.child_dim, sizes.parents * sizes.parent_dim
    iterations = routing.recompute == "iterations"
    if iterations:  # votes, logits and parent poses
        saved = votes + max(1, rounds - 1) * logits + (rounds - 1) * parents
    else:  # votes unless nothing needs them; coupling, agreement, and what squash keeps
        kept = 1 if last else rounds
        saved = (rounds > 1 or log_priors) * votes + (2 * kept - (not log_priors)) * logits
        saved += (2 * kept - 1) * parents + 4 * kept * sizes.parents
    # Gradients of votes that autograd holds at a time, measured with torch 2.13: what later operations gave,
    # what one more gives, and a copy in the order of the product that made the votes.
    several = rounds > 1 and not last
    planes = (3 if several else 1) if iterations else (3 if several and rounds > 2 else 2)
    return LayerCost(
        name,
        parameters=parameters,
        forward_flop=product + passes * small,
        backward_flop=2 * product + backward * small,
        recomputed_flop=again * small if iterations else 0,
        saved=Numbers(wide=poses + saved),  # it computes in fp32
        forward_peaks=(Bytes(_FP32 * votes, _FP32 * weights),),
        backward_peaks=(Bytes(_FP32 * planes * votes, _FP32 * parameters),),
        routed=sizes,
    )
