"""One function for every form of routing: checks its arguments, takes a form by name, runs it.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing.packing import pack_weights, unpack_weights
from capsdist.routing.reference import route_reference
from capsdist.routing.streamed import route_streamed

__all__ = ["Form", "choose_form", "route", "route_packed"]

Form = Literal["auto", "reference", "streamed"]


def route(
    child_poses: Tensor,
    weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    none_of_the_above: bool = False,
    form: Form = "auto",
) -> Tensor:
    """Return the poses of the parents that children agree on: Procedure 1 of the paper (section 2).

    Args:
        child_poses: [B, I, D] u_i, any floating dtype. Float64 is computed in float64, all else in fp32,
            also under autocast.
        weights: [I, J, D, E] W_ij, on the same device.
        iterations: r >= 1; r iterations are r softmax passes.
        bias: [J, E] added to the totals before squash (official code), or None.
        none_of_the_above: let one more parent with a fixed logit of 0 compete for every child; it is
            dropped from the result ("leaky" routing of the official CIFAR-10 network).
        form: `reference` keeps all votes, `streamed` never stores them (own backward, differentiable once);
            `auto` takes the fastest. All give the same numbers.

    Returns:
        parent_poses [B, J, E] in the dtype of `child_poses`, each of a length below 1.

    Raises:
        ShapeError: a shape, dtype, device, iterations or form that cannot be.

    Cost: see `streamed`. It works on packed weights: unless `weights` is a view of some (`unpack_weights`),
    each call copies it once and keeps the copy for the backward pass. A layer stores its weights packed and
    calls `route_packed`.

    Example:
        >>> parent_poses = route(torch.randn(2, 6, 8), torch.randn(6, 10, 8, 16), iterations=3)
        >>> parent_poses.shape
        torch.Size([2, 10, 16])
    """
    _check_dims("weights", weights, "[I, J, D, E]", 4)
    _check(child_poses, weights, bias, iterations)
    if choose_form(form) == "reference":
        return _reference(child_poses, weights, iterations, bias, none_of_the_above)
    packed = pack_weights(weights)
    return route_streamed(child_poses, packed, iterations, bias=bias, none_of_the_above=none_of_the_above)


def route_packed(
    child_poses: Tensor,
    packed_weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    none_of_the_above: bool = False,
    form: Form = "auto",
) -> Tensor:
    """Do as `route`, with weights in the fast layout [J, E, D, I] (see `packing`), which nothing copies."""
    _check_dims("packed_weights", packed_weights, "[J, E, D, I]", 4)
    weights = unpack_weights(packed_weights)
    _check(child_poses, weights, bias, iterations)
    if choose_form(form) == "reference":
        return _reference(child_poses, weights, iterations, bias, none_of_the_above)
    return route_streamed(
        child_poses, packed_weights, iterations, bias=bias, none_of_the_above=none_of_the_above
    )


def choose_form(form: str) -> Literal["reference", "streamed"]:
    """Return the form that a name stands for; `auto` is `streamed`, the fastest on every device so far.

    Raises:
        ShapeError: there is no form of that name.
    """
    if form in ("auto", "streamed"):
        return "streamed"
    if form == "reference":
        return "reference"
    raise ShapeError(f"form={form!r} is no form of routing; choose 'auto', 'streamed' or 'reference'")


def _reference(
    child_poses: Tensor, weights: Tensor, iterations: int, bias: Tensor | None, none_of_the_above: bool
) -> Tensor:
    """Run the reference in at least fp32; it computes in whatever dtype it is given."""
    dtype = torch.promote_types(torch.promote_types(child_poses.dtype, weights.dtype), torch.float32)
    with torch.autocast(child_poses.device.type, enabled=False):
        parent_poses = route_reference(
            child_poses.to(dtype),
            weights.to(dtype),
            iterations,
            bias=None if bias is None else bias.to(dtype),
            none_of_the_above=none_of_the_above,
        )
    return parent_poses.to(child_poses.dtype)


def _check(child_poses: Tensor, weights: Tensor, bias: Tensor | None, iterations: int) -> None:
    """Refuse what cannot be routed; `weights` is [I, J, D, E]."""
    _check_dims("child_poses", child_poses, "[B, I, D]", 3)
    num_children, num_parents, dim_child, dim_parent = weights.shape
    if child_poses.shape[1:] != (num_children, dim_child):
        raise ShapeError(
            f"child_poses {list(child_poses.shape)} do not fit weights [I, J, D, E] = {list(weights.shape)}; "
            f"pass [B, I, D] = [B, {num_children}, {dim_child}] or other weights"
        )
    if 0 in weights.shape:
        raise ShapeError(f"weights [I, J, D, E] = {list(weights.shape)} are empty; give all sizes at least 1")
    if bias is not None and bias.shape != (num_parents, dim_parent):
        raise ShapeError(f"bias has shape {list(bias.shape)}; pass [J, E] = [{num_parents}, {dim_parent}]")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ShapeError(f"iterations={iterations!r} must be a whole number of at least 1; the paper has 3")
    operands = {"child_poses": child_poses, "weights": weights} | ({} if bias is None else {"bias": bias})
    for name, tensor in operands.items():
        if not tensor.is_floating_point():
            raise ShapeError(f"{name} has dtype {tensor.dtype}; make it floating, such as with .float()")
        if (tensor.dtype == torch.float64) != (child_poses.dtype == torch.float64):
            raise ShapeError(
                f"{name} has dtype {tensor.dtype} but child_poses {child_poses.dtype}; "
                "make all of them float64, or none"
            )
        if tensor.device != child_poses.device:
            raise ShapeError(
                f"{name} is on {tensor.device} but child_poses on {child_poses.device}; use one device"
            )


def _check_dims(name: str, tensor: Tensor, letters: str, num_dims: int) -> None:
    if tensor.dim() != num_dims:
        raise ShapeError(f"{name} has shape {list(tensor.shape)}; pass {letters}, {num_dims} dimensions")
