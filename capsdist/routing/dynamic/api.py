"""The public functions of dynamic routing.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing.common.checks import check_dims
from capsdist.routing.dynamic.backends import Explanation, check_call, choose, route_call
from capsdist.routing.dynamic.options import RoutingCall, RoutingKeywords, RoutingOptions

__all__ = ["check_layout", "explain", "route", "route_packed"]


def route(
    child_poses: Tensor,
    weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
    **options: Unpack[RoutingKeywords],
) -> Tensor:
    """Return the poses of the parents that children agree on: Procedure 1 of the paper (section 2).

    Args:
        child_poses: [B, I, D] u_i, of 16, 32 or 64 bits. Float64 is computed in float64, all else in fp32,
            also under autocast (`fused`: summed in fp32).
        weights: [I, J, D, E] W_ij, on the same device.
        iterations: r >= 1, any integer; r iterations are r softmax passes.
        bias: [J, E] added to the totals before squash (official code), or None.
        log_priors: [I, J] logits to start from, the paper's log prior probabilities, or None for 0.
        options: the other fields of `RoutingOptions`, by name:
            none_of_the_above (default False): one more parent with a fixed logit of 0 competes for every
                child; it is dropped from the result ("leaky" routing of the official CIFAR-10 network).
            gradient (default `full`): `full`, the paper's graph, goes through all iterations. `last` takes
                what earlier iterations add to the logits for a constant, as some public code does; log priors
                and bias then have the gradient of the last iteration.
            recompute (default `streamed`): what the backward pass builds again. `streamed`: everything, in
                the own backward passes of `fused` and `streamed`. `iterations` and `none` are there to
                compare with: autograd runs the reference, and keeps the votes, or all that every iteration
                computes.
            backend (default `auto`): `fused` are GPU kernels, `streamed` never stores votes (both: own
                backward, differentiable once), `reference` keeps all votes; `auto` takes the first of them
                that can be, see `explain`, whatever the size: memory is then bounded, though for fewer than
                some thousand votes the reference is faster. All give the same numbers, `fused` to the
                rounding of its operands in bf16 and fp16. The reference, asked for by name, takes
                `recompute="streamed"` for `none`.

    Returns:
        parent_poses [B, J, E] in the dtype of `child_poses`, each of a length below 1 (up to rounding).

    Raises:
        ShapeError: a shape, dtype, device, number or name that cannot be.
        NotImplementedError: a second derivative of `streamed` or `fused` is asked for.

    Compilers, exporters and torch.func: see the folder's README.

    Cost: see `streamed`. It works on packed weights: unless `weights` is a view of some (`unpack_weights`),
    each call copies it once and keeps the copy for the backward pass. A layer stores its weights packed and
    calls `route_packed`.

    Example:
        >>> parent_poses = route(torch.randn(2, 6, 8), torch.randn(6, 10, 8, 16), iterations=3)
        >>> parent_poses.shape
        torch.Size([2, 10, 16])
    """
    packed = _packed_view(child_poses, weights)
    call = RoutingCall(child_poses, packed, RoutingOptions(iterations, **options), bias, log_priors)
    return route_call(call)


def route_packed(
    child_poses: Tensor,
    packed_weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
    **options: Unpack[RoutingKeywords],
) -> Tensor:
    """Do as `route`, with weights in the fast layout [J, E, D, I] (see `packing`), which nothing copies."""
    check_layout(child_poses, packed_weights, packed=True)
    call = RoutingCall(child_poses, packed_weights, RoutingOptions(iterations, **options), bias, log_priors)
    return route_call(call)


def explain(
    child_poses: Tensor,
    weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
    **options: Unpack[RoutingKeywords],
) -> Explanation:
    """Say which backend `route` takes for these arguments, and why not the others; computes nothing.

    Args: as `route`; weights [I, J, D, E]. Of packed weights pass `unpack_weights(packed_weights)`.
    Raises: ShapeError as `route`.

    Example:
        >>> print(explain(torch.randn(2, 6, 8), torch.randn(6, 10, 8, 16)))
        fused      refused: child_poses are on the CPU
        streamed   taken: never stores votes, and has its own backward pass
        reference  not needed: Procedure 1 as it is written, which keeps all votes
    """
    packed = _packed_view(child_poses, weights)
    call = RoutingCall(child_poses, packed, RoutingOptions(iterations, **options), bias, log_priors)
    check_call(call)
    return choose(call)


def _packed_view(child_poses: Tensor, weights: Tensor) -> Tensor:
    """Return weights [I, J, D, E] as a view [J, E, D, I]."""
    check_layout(child_poses, weights, packed=False)
    return weights.permute(1, 3, 2, 0)


def check_layout(child_poses: Tensor, weights: Tensor, *, packed: bool) -> None:
    """Refuse weights that fit the poses only if they are read in the other layout."""
    name, letters, others = "weights", "[I, J, D, E]", "[J, E, D, I]"
    children, remedy = (0, 3), "unpack_weights(weights) or call route_packed"
    if packed:
        name, letters, others = "packed_weights", others, letters
        children, remedy = (3, 0), "pack_weights(weights) or call route"
    check_dims("child_poses", child_poses, "[B, I, D]", 3)
    check_dims(name, weights, letters, 4)
    own, other = (weights.shape[dim] == child_poses.shape[1] for dim in children)
    if other and not own and weights.shape[2] == child_poses.shape[2]:
        raise ShapeError(
            f"child_poses {list(child_poses.shape)} do not fit {name} {letters} = {list(weights.shape)}, "
            f"but would if these were {others}; pass {remedy}"
        )
