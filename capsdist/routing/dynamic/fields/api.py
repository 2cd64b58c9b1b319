"""Dynamic routing between grids: check one call, choose its backend and run it; or explain which it takes.

Shape letters: B images, N child positions, T child types, P parent positions, K places of a field, J parent
types, D child dimension, E parent dimension.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack, get_args

from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing.common.autograd import is_recorded, is_transformed
from capsdist.routing.common.checks import check_dims, check_kind, check_name
from capsdist.routing.common.explanation import Explanation, choose
from capsdist.routing.common.fields import Fields
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.common.sharing import Competition
from capsdist.routing.dynamic.fields.call import FieldCall
from capsdist.routing.dynamic.fields.reference import route_fields_reference
from capsdist.routing.dynamic.fields.streamed import route_fields_streamed
from capsdist.routing.dynamic.options import RoutingKeywords, RoutingOptions

__all__ = ["BACKENDS", "explain_fields", "route_field_call", "route_fields"]

BACKENDS = {
    "fused": "kernels for a GPU, which there are none of for grids",
    "streamed": "never stores votes nor patches, and has its own backward pass",
    "reference": "Procedure 1 as it is written, which keeps all votes",
}
"""What each backend is, in the order of preference."""


def route_fields(
    child_poses: Tensor,
    packed_weights: Tensor,
    fields: Fields,
    iterations: int = 3,
    *,
    competition: Competition = "field",
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
    **options: Unpack[RoutingKeywords],
) -> Tensor:
    """Return the poses of a grid of parents, each routed from the children in its field.

    Procedure 1 of Sabour, Frosst, Hinton 2017, section 2, with the connectivity of Hinton, Sabour, Frosst
    2018, section 2.3: a child divides itself over all parents, types and positions, that see it.

    Args:
        child_poses: [B, N, T, D], positions row by row, of 16, 32 or 64 bits. Float64 is computed in float64,
            all else in fp32, also under autocast.
        packed_weights: [J, E, D, T * K], the children of a field by type and then by place; [J, E, D, T]
            where `fields` share weights over places.
        fields: which children each parent position sees.
        iterations: r >= 1; r iterations are r softmax passes.
        competition: `field`, or `position`: a softmax over the types at each position alone, as some public
            code does, so that a child counts once a position.
        bias: [J, E] added to the totals before squash, or None.
        log_priors: [T * K, J] logits to start from, or None for 0.
        options: as `route`.

    Returns:
        [B, P, J, E] in the dtype of `child_poses`.

    Raises:
        ShapeError: a shape, dtype, device, number or name that cannot be.
        NotImplementedError: a second derivative of `streamed` is asked for.

    Cost: `streamed` keeps the arguments and R B P J E numbers; votes and the K copies of the poses in patches
    exist for a block of images at a time. `reference` keeps B K P T J E votes, several times over.

    Example:
        >>> import torch
        >>> fields = Fields((8, 8), (3, 3), (2, 2))
        >>> route_fields(torch.randn(2, 64, 4, 8), torch.randn(6, 16, 8, 4 * 9), fields).shape
        torch.Size([2, 9, 6, 16])
    """
    given = RoutingOptions(iterations, **options)
    return route_field_call(
        FieldCall(child_poses, packed_weights, fields, given, competition, bias, log_priors)
    )


def route_field_call(call: FieldCall) -> Tensor:
    """Do as `route_fields`, with all arguments in one object; a layer makes its options once."""
    if explain_fields(call).backend == "streamed":
        return route_fields_streamed(replace(call, packed_weights=call.packed_weights.contiguous()))
    dtype = wide_dtype(call.child_poses, call.packed_weights)
    wide = replace(
        call,
        child_poses=call.child_poses.to(dtype),
        packed_weights=call.packed_weights.to(dtype),
        bias=None if call.bias is None else call.bias.to(dtype),
        log_priors=None if call.log_priors is None else call.log_priors.to(dtype),
    )
    with without_autocast(call.child_poses):
        return route_fields_reference(wide).to(call.child_poses.dtype)


def explain_fields(call: FieldCall) -> Explanation:
    """Say which backend a call takes, and why not the others; computes nothing.

    Raises: ShapeError as `route_fields`.
    """
    check_call(call)
    return choose(BACKENDS, call.options.backend, lambda name: _refusal(name, call))


def _refusal(name: str, call: FieldCall) -> str | None:
    """Return in a few words why a call cannot take a backend, or None."""
    if name == "reference":
        return None
    if name == "fused":
        return "there are no kernels for grids"
    if call.options.recompute != "streamed":
        return "recompute='none' is for autograd, and this backend has its own backward pass"
    if is_recorded():
        return "torch.jit.trace and ONNX record the reference only"
    if is_transformed():
        return "torch.func and forward mode differentiate the reference only"
    return None


def check_call(call: FieldCall) -> None:
    """Refuse what cannot be routed.

    Raises: ShapeError, as `route_fields` says.
    """
    poses, fields = call.child_poses, call.fields
    check_name("competition", call.competition, get_args(Competition))
    check_dims("child_poses", poses, "[B, N, T, D]", 4)
    check_dims("packed_weights", call.packed_weights, "[J, E, D, T * K]", 4)
    _, positions, types, child_dim = poses.shape
    num_parents, parent_dim = call.packed_weights.shape[:2]
    own = types * fields.num_matrices
    wanted = {
        "child_poses": (poses, [poses.shape[0], fields.num_children, types, child_dim]),
        "packed_weights": (call.packed_weights, [num_parents, parent_dim, child_dim, own]),
        "bias": (call.bias, [num_parents, parent_dim]),
        "log_priors": (call.log_priors, [types * fields.size, num_parents]),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        check_kind(name, tensor, poses)
        if list(tensor.shape) != shape:
            raise ShapeError(
                f"{name} has shape {list(tensor.shape)}; with {types} child types of {child_dim}D at "
                f"{positions} positions, and fields over {fields.num_children} of {fields.size} places, "
                f"pass {shape}"
            )
    if 0 in call.packed_weights.shape:
        raise ShapeError(
            f"packed_weights {list(call.packed_weights.shape)} are empty; give all sizes at least 1"
        )
    if call.options.recompute == "iterations":
        raise ShapeError("recompute='iterations' is not there for grids; choose 'streamed' or 'none'")
