"""One function for every backend of routing: checks its arguments, takes a backend by name, runs it.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing.common.checks import check_dims, check_flag, check_iterations, check_kind, check_name
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.dynamic.backends import Backend, Call, Explanation, Recompute, check_backend, choose
from capsdist.routing.dynamic.packing import unpack_weights
from capsdist.routing.dynamic.reference import route_reference
from capsdist.routing.dynamic.streamed import route_streamed
from capsdist.routing.dynamic.streamed_passes import Gradient

__all__ = ["check_call", "check_layout", "check_options", "explain", "route", "route_packed"]


def route(
    child_poses: Tensor,
    weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
    none_of_the_above: bool = False,
    gradient: Gradient = "full",
    recompute: Recompute = "streamed",
    backend: Backend = "auto",
) -> Tensor:
    """Return the poses of the parents that children agree on: Procedure 1 of the paper (section 2).

    Args:
        child_poses: [B, I, D] u_i, of 16, 32 or 64 bits. Float64 is computed in float64, all else in fp32,
            also under autocast (`fused`: summed in fp32).
        weights: [I, J, D, E] W_ij, on the same device.
        iterations: r >= 1, any integer; r iterations are r softmax passes.
        bias: [J, E] added to the totals before squash (official code), or None.
        log_priors: [I, J] logits to start from, the paper's log prior probabilities, or None for 0.
        none_of_the_above: let one more parent with a fixed logit of 0 compete for every child; it is
            dropped from the result ("leaky" routing of the official CIFAR-10 network).
        gradient: `full`, the paper's graph, goes through all iterations. `last` takes what earlier
            iterations add to the logits for a constant, as some public code does; log priors and bias
            then have the gradient of the last iteration.
        recompute: what the backward pass builds again. `streamed`: everything, in the own backward passes of
            the backends `fused` and `streamed`. `iterations` and `none` are there to compare with: autograd
            runs the reference, and keeps the votes, or all that every iteration computes.
        backend: `fused` are GPU kernels, `streamed` never stores votes (both: own backward, differentiable
            once), `reference` keeps all votes; `auto` takes the first of them that can be, see `explain`,
            whatever the size: memory is then bounded, though for fewer than some thousand votes the
            reference is faster. All give the same numbers, `fused` to the rounding of its operands in bf16
            and fp16. The reference, asked for by name, takes `recompute="streamed"` for `none`.

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
    call = Call(child_poses, packed, iterations, bias, log_priors, none_of_the_above, gradient, recompute)
    return _run(call, backend)


def route_packed(
    child_poses: Tensor,
    packed_weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
    none_of_the_above: bool = False,
    gradient: Gradient = "full",
    recompute: Recompute = "streamed",
    backend: Backend = "auto",
) -> Tensor:
    """Do as `route`, with weights in the fast layout [J, E, D, I] (see `packing`), which nothing copies."""
    check_layout(child_poses, packed_weights, packed=True)
    call = Call(
        child_poses, packed_weights, iterations, bias, log_priors, none_of_the_above, gradient, recompute
    )
    return _run(call, backend)


def explain(
    child_poses: Tensor,
    weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
    none_of_the_above: bool = False,
    gradient: Gradient = "full",
    recompute: Recompute = "streamed",
    backend: Backend = "auto",
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
    call = Call(child_poses, packed, iterations, bias, log_priors, none_of_the_above, gradient, recompute)
    check_call(call)
    return choose(backend, call)


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


def _run(call: Call, backend: str) -> Tensor:
    """Run one call."""
    check_call(call)
    chosen = choose(backend, call).backend
    operands = {"bias": call.bias, "log_priors": call.log_priors}
    if chosen == "reference":
        return _reference(call, operands)
    packed = call.packed_weights.contiguous()  # itself, if it is packed
    if chosen == "streamed":
        return route_streamed(call.child_poses, packed, gradient=call.gradient, **operands, **call.options)
    from capsdist.routing.dynamic.fused import route_fused  # with Triton, which takes its time

    return route_fused(call.child_poses, packed, **operands, **call.options)


def _reference(call: Call, operands: dict[str, Tensor | None]) -> Tensor:
    """Run the reference in at least fp32; it computes in whatever dtype it is given."""
    poses, weights = call.child_poses, unpack_weights(call.packed_weights)
    dtype = wide_dtype(poses, weights)
    with without_autocast(poses):
        parent_poses = route_reference(
            poses.to(dtype),
            weights.to(dtype),
            gradient=call.gradient,
            recompute="iterations" if call.recompute == "iterations" else "none",
            **{name: None if tensor is None else tensor.to(dtype) for name, tensor in operands.items()},
            **call.options,
        )
    return parent_poses.to(poses.dtype)


def check_call(call: Call) -> None:
    """Refuse what cannot be routed.

    Raises: ShapeError, as `route` says.
    """
    check_dims("child_poses", call.child_poses, "[B, I, D]", 3)
    check_dims("packed_weights", call.packed_weights, "[J, E, D, I]", 4)
    shape = list(unpack_weights(call.packed_weights).shape)
    num_children, num_parents, child_dim, parent_dim = shape
    poses, bias, log_priors = call.child_poses, call.bias, call.log_priors
    operands = {"child_poses": poses, "weights": call.packed_weights, "bias": bias, "log_priors": log_priors}
    for name, tensor in operands.items():
        if tensor is not None:
            check_kind(name, tensor, poses)
    if poses.shape[1:] != (num_children, child_dim):
        raise ShapeError(
            f"child_poses {list(poses.shape)} do not fit weights [I, J, D, E] = {shape}; "
            f"pass [B, I, D] = [B, {num_children}, {child_dim}] or other weights"
        )
    if 0 in shape:
        raise ShapeError(f"weights [I, J, D, E] = {shape} are empty; give all sizes at least 1")
    if bias is not None and bias.shape != (num_parents, parent_dim):
        raise ShapeError(f"bias has shape {list(bias.shape)}; pass [J, E] = [{num_parents}, {parent_dim}]")
    if log_priors is not None and log_priors.shape != (num_children, num_parents):
        raise ShapeError(
            f"log_priors has shape {list(log_priors.shape)}; pass [I, J] = [{num_children}, {num_parents}]"
        )
    check_options(call.iterations, call.none_of_the_above, call.gradient, call.recompute)


def check_options(
    iterations: object,
    none_of_the_above: object = False,
    gradient: object = "full",
    recompute: object = "streamed",
    backend: object = "auto",
) -> None:
    """Refuse options that no call can have, in layers before there is any call.

    Raises: ShapeError, as `route` says.
    """
    check_iterations(iterations)
    check_flag("none_of_the_above", none_of_the_above)
    check_name("gradient", gradient, get_args(Gradient))
    check_name("recompute", recompute, get_args(Recompute))
    check_backend(backend)
