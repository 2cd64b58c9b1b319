"""Check one call of routing, choose its backend and run it; or explain why it takes that one.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing.common.autograd import is_recorded, is_transformed
from capsdist.routing.common.checks import check_dims, check_kind
from capsdist.routing.common.explanation import Explanation
from capsdist.routing.common.explanation import choose as first_of
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.dynamic.options import RoutingCall
from capsdist.routing.dynamic.packing import unpack_weights
from capsdist.routing.dynamic.reference import route_reference
from capsdist.routing.dynamic.streamed import RECORDED, route_streamed, streamed_refusal

__all__ = ["BACKENDS", "check_call", "choose", "route_call"]

BACKENDS = {
    "fused": "kernels for a GPU, which store nothing between an iteration's start and its end",
    "streamed": "never stores votes, and has its own backward pass",
    "reference": "Procedure 1 as it is written, which keeps all votes",
}
"""What each backend is, in the order of preference: the fastest first, but for tiny layers."""


def route_call(call: RoutingCall) -> Tensor:
    """Do as `route_packed`, with all arguments in one object; a layer makes its options once."""
    check_call(call)
    chosen = choose(call).backend
    if chosen == "reference":
        return _reference(call)
    call = replace(call, packed_weights=call.packed_weights.contiguous())  # itself, if it is packed
    if chosen == "streamed":
        return route_streamed(call)
    from capsdist.routing.dynamic.fused import route_fused  # with Triton, which takes its time

    return route_fused(call)


def _reference(call: RoutingCall) -> Tensor:
    """Run the reference in at least fp32; it computes in whatever dtype it is given."""
    poses, weights, options = call.child_poses, unpack_weights(call.packed_weights), call.options
    dtype = wide_dtype(poses, weights)
    with without_autocast(poses):
        parent_poses = route_reference(
            poses.to(dtype),
            weights.to(dtype),
            options.iterations,
            bias=None if call.bias is None else call.bias.to(dtype),
            log_priors=None if call.log_priors is None else call.log_priors.to(dtype),
            none_of_the_above=options.none_of_the_above,
            gradient=options.gradient,
            recompute="none" if options.recompute == "streamed" else options.recompute,
        )
    return parent_poses.to(poses.dtype)


def choose(call: RoutingCall) -> Explanation:
    """Return the backend that a call takes: `auto` is the first that it can take.

    Raises:
        ShapeError: the call cannot take the backend that it asks for by name.
    """
    return first_of(BACKENDS, call.options.backend, lambda name: _refusal(name, call))


def _refusal(name: str, call: RoutingCall) -> str | None:
    """Return in a few words why a call cannot take a backend, or None."""
    options, asked = call.options, name == call.options.backend
    if name == "reference":
        return None
    if options.recompute != "streamed":
        return f"recompute={options.recompute!r} is for autograd, and this backend has its own backward pass"
    if name == "streamed":
        return streamed_refusal(call)
    if options.gradient != "full":
        return f"gradient={options.gradient!r} is not in its kernels"
    if is_recorded():
        return RECORDED
    if is_transformed():
        return "torch.func and forward mode do not know its kernels"
    if call.child_poses.device.type == "cpu" and not asked:  # most calls of most users: not even imported
        return "child_poses are on the CPU"
    from capsdist.routing.dynamic.fused import fused_refusal

    return fused_refusal(call.child_poses, call.packed_weights, interpreter=asked)


def check_call(call: RoutingCall) -> None:
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
