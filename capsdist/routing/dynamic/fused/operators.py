"""The fused backend as torch operators, for compilers, exporters, autograd and autocast.

Importing this module needs torch only; Triton is imported when the first kernel is launched.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from capsdist.routing.dynamic.options import RoutingCall

__all__ = ["route_fused"]


@torch.library.custom_op("capsdist::route_fused", mutates_args=())
def _route(
    child_poses: Tensor,
    packed_weights: Tensor,
    bias: Tensor | None,
    log_priors: Tensor | None,
    iterations: int,
    none_of_the_above: bool,
    operand_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Return parent_poses [B, J, E], and totals [R, J, B, E] for the backward pass."""
    from capsdist.routing.dynamic.fused.call import Call
    from capsdist.routing.dynamic.fused.launch_forward import route_forward

    dtype = _dtype_of_products(child_poses, packed_weights, operand_dtype)
    bias = None if bias is None else bias.contiguous()
    with _device_of(child_poses):
        call = Call.prepare(child_poses, packed_weights, log_priors, none_of_the_above, dtype)
        return route_forward(call, bias, iterations, child_poses.dtype)


@_route.register_fake
def _(
    child_poses: Tensor, packed_weights: Tensor, bias: Any, log_priors: Any, iterations: int, *_: Any
) -> tuple[Tensor, Tensor]:
    num_images, (num_parents, parent_dim) = child_poses.shape[0], packed_weights.shape[:2]
    parent_poses = child_poses.new_empty((num_images, num_parents, parent_dim))
    totals = child_poses.new_empty((iterations, num_parents, num_images, parent_dim), dtype=torch.float32)
    return parent_poses, totals


@torch.library.custom_op("capsdist::route_fused_backward", mutates_args=())
def _route_backward(
    grad: Tensor,
    child_poses: Tensor,
    packed_weights: Tensor,
    log_priors: Tensor | None,
    totals: Tensor,
    none_of_the_above: bool,
    operand_dtype: torch.dtype | None,
    want_weights: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradients of poses [B, D, I], weights [J, E, D, I], bias [J, E], priors [I, J].

    The poses' has their dtype, the weights' theirs, the others are fp32; what is not wanted is empty.
    """
    from capsdist.routing.dynamic.fused.call import Call
    from capsdist.routing.dynamic.fused.launch_backward import route_backward

    dtype = _dtype_of_products(child_poses, packed_weights, operand_dtype)
    with _device_of(child_poses):
        call = Call.prepare(child_poses, packed_weights, log_priors, none_of_the_above, dtype)
        d_poses, d_weights, d_bias, d_priors = route_backward(
            call,
            totals,
            grad.contiguous(),
            poses_dtype=child_poses.dtype,
            weights_dtype=packed_weights.dtype if want_weights else None,
            want_bias=want_bias,
        )
    return (
        d_poses,
        packed_weights.new_empty(0) if d_weights is None else d_weights,
        totals.new_empty(0) if d_bias is None else d_bias,
        totals.new_empty(0) if d_priors is None else d_priors,
    )


@_route_backward.register_fake
def _(
    grad: Tensor,
    child_poses: Tensor,
    packed_weights: Tensor,
    log_priors: Tensor | None,
    totals: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    want_weights, want_bias = others[-2:]
    num_images, num_children, child_dim = child_poses.shape
    num_parents, parent_dim = packed_weights.shape[:2]
    return (
        child_poses.new_empty((num_images, child_dim, num_children)),
        packed_weights.new_empty(packed_weights.shape if want_weights else 0),
        totals.new_empty((num_parents, parent_dim) if want_bias else 0),
        totals.new_empty((num_children, num_parents) if want_weights and log_priors is not None else 0),
    )


def _device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Launch kernels where the operands are, which need not be the current GPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _dtype_of_products(
    child_poses: Tensor, packed_weights: Tensor, operand_dtype: torch.dtype | None
) -> torch.dtype:
    if operand_dtype is not None:
        return operand_dtype
    return torch.promote_types(child_poses.dtype, packed_weights.dtype)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    """Save the operands themselves, no copy of them, and the totals: R B J E numbers."""
    child_poses, packed_weights, bias, log_priors, _, none_of_the_above, operand_dtype = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(child_poses, packed_weights, log_priors, output[1])
    ctx.none_of_the_above, ctx.operand_dtype = none_of_the_above, operand_dtype
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "fused routing is differentiable once; for create_graph=True choose backend='reference'"
        )
    if grad is None:
        return (None,) * 7
    child_poses, packed_weights, log_priors, totals = ctx.saved_tensors
    want_poses, want_weights, want_bias, want_priors = ctx.needs_input_grad[:4]
    d_poses, d_weights, d_bias, d_priors = _route_backward(
        grad,
        child_poses,
        packed_weights,
        log_priors,
        totals,
        ctx.none_of_the_above,
        ctx.operand_dtype,
        want_weights or want_priors,
        want_bias,
    )
    return (
        d_poses.transpose(1, 2) if want_poses else None,
        d_weights if want_weights else None,
        d_bias.to(ctx.bias_dtype) if want_bias else None,
        d_priors.to(log_priors.dtype) if want_priors else None,
        None,
        None,
        None,
    )


_route.register_autograd(_gradients, setup_context=_keep)


def _autocast(device_type: str) -> None:
    """Under autocast products are taken in its dtype; poses and weights are saved as they are, not cast."""

    @torch.library.impl("capsdist::route_fused", f"Autocast{device_type.upper()}")
    def rule(*arguments: Any) -> tuple[Tensor, Tensor]:
        *others, operand_dtype = arguments
        dtype = operand_dtype or torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return _route(*others, dtype)


_autocast("cuda")
_autocast("cpu")


def route_fused(call: RoutingCall) -> Tensor:
    """Return the parent poses of Procedure 1 (paper, section 2) by Triton kernels.

    Args:
        call: `child_poses` are not copied if their memory is laid out as [B, D, I]. `packed_weights` are best
            the Parameter itself: it is what is saved.

    Returns:
        [B, J, E] in the dtype of `child_poses`. Products have operands of the common dtype of poses and
        weights, or autocast's, and add up in fp32; everything else is fp32.

    Cost: see the folder's README. Kept for the backward pass: the arguments and R B J E fp32 numbers.

    Raises:
        NotImplementedError: in a backward pass with create_graph=True; it is differentiable once.
    """
    operands = call.child_poses, call.packed_weights, call.bias, call.log_priors
    parent_poses, _ = _route(*operands, call.options.iterations, call.options.none_of_the_above, None)
    return parent_poses
