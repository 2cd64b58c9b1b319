"""Route pose matrices by EM: check one call, choose its backend and run it; or explain which one it takes.

Shape letters: B images, N child positions, T child types, P parent positions, C parent types, K places of a
field, S side of a pose matrix.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing.common.autograd import is_recorded, is_transformed
from capsdist.routing.common.checks import check_dims, check_kind
from capsdist.routing.common.explanation import Explanation, choose
from capsdist.routing.common.fields import Fields
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.em.options import EMCall, EMKeywords, EMOptions
from capsdist.routing.em.reference import route_em_reference
from capsdist.routing.em.streamed import route_em_streamed

__all__ = ["BACKENDS", "explain_em", "route_em", "route_em_call"]

BACKENDS = {
    "streamed": "never stores votes, and has its own backward pass",
    "reference": "Procedure 1 as it is written, which keeps all votes",
}
"""What each backend is, in the order of preference."""


def route_em(
    poses: Tensor,
    activations: Tensor,
    weights: Tensor,
    beta_u: Tensor,
    beta_a: Tensor,
    fields: Fields,
    iterations: int = 3,
    *,
    offsets: Tensor | None = None,
    **options: Unpack[EMKeywords],
) -> tuple[Tensor, Tensor]:
    """Return poses and activations of the parents by EM routing.

    Source: Hinton, Sabour, Frosst, "Matrix capsules with EM routing" (ICLR 2018), Procedure 1. A parent
    (position p, type c) is a Gaussian over the votes of the children in its field; each child divides itself
    over all parents that see it.

    Args:
        poses: [B, N, T, S, S] M of the children, of 16, 32 or 64 bits. Float64 is computed in float64, all
            else in fp32, also under autocast.
        activations: [B, N, T] a of the children, in [0, 1].
        weights: [K, T, C, S, S] W, or [1, T, C, S, S] of shared fields; votes are the products M W.
        beta_u, beta_a: [C] cost of describing a vote dimension, and benefit of an active parent.
        fields: which children each parent sees; N and P are its numbers of positions.
        iterations: M-steps; between them are E-steps. The published networks have 3.
        offsets: [K, S, S] added to the votes from each place of a field: coordinate addition (section 4), or
            None. They have no gradient.
        options: the other fields of `EMOptions`, by name:
            inverse_temperature (default 0.01), temperature_decay (default 0.95): lambda of iteration t,
                counted from 0, is inverse_temperature (1 - temperature_decay^(t + 1)).
            variance_floor (default 1e-4): added to each variance, because votes may agree entirely; the paper
                is silent.
            competition (default `field`): `field`, the paper's, a softmax over all parents that see the
                child; `position` over their types at each position alone, as some public code does.
            backend (default `auto`): `streamed` never stores votes (own backward, differentiable once),
                `reference` keeps them all; the same numbers. `auto` is the first that can be.

    Returns:
        poses [B, P, C, S, S] and activations [B, P, C], in the dtypes of the children's. The pose of a parent
        whose children all have an activation of 0 is 0, and no gradient goes through it.

    Raises:
        ShapeError: a shape, dtype, device, number or name that cannot be.
        NotImplementedError: a second derivative of `streamed` is asked for.

    Example:
        >>> import torch
        >>> fields = Fields((6, 6), (3, 3), (1, 1))
        >>> weights, beta = torch.randn(9, 8, 16, 4, 4), torch.zeros(16)
        >>> poses = torch.randn(2, 36, 8, 4, 4)
        >>> found, active = route_em(poses, torch.rand(2, 36, 8), weights, beta, beta, fields)
        >>> found.shape, active.shape
        (torch.Size([2, 16, 16, 4, 4]), torch.Size([2, 16, 16]))
    """
    given = EMOptions(iterations, **options)
    return route_em_call(EMCall(poses, activations, weights, beta_u, beta_a, fields, given, offsets))


def route_em_call(call: EMCall) -> tuple[Tensor, Tensor]:
    """Do as `route_em`, with all arguments in one object; a layer makes its options once."""
    check_call(call)
    if choose(BACKENDS, call.options.backend, _refusal).backend == "streamed":
        return route_em_streamed(call)
    return _reference(call)


def explain_em(call: EMCall) -> Explanation:
    """Say which backend a call takes, and why not the other; computes nothing.

    Raises: ShapeError as `route_em`.
    """
    check_call(call)
    return choose(BACKENDS, call.options.backend, _refusal)


def _reference(call: EMCall) -> tuple[Tensor, Tensor]:
    """Run the reference in at least fp32; it computes in whatever dtype it is given."""
    dtype = wide_dtype(call.poses)
    wide = replace(
        call,
        poses=call.poses.to(dtype),
        activations=call.activations.to(dtype),
        weights=call.weights.to(dtype),
        beta_u=call.beta_u.to(dtype),
        beta_a=call.beta_a.to(dtype),
        offsets=None if call.offsets is None else call.offsets.to(dtype),
    )
    with without_autocast(call.poses):
        poses, activations = route_em_reference(wide)
    return poses.to(call.poses.dtype), activations.to(call.activations.dtype)


def _refusal(name: str) -> str | None:
    """Return in a few words why a backend cannot be taken here, or None."""
    if name == "reference":
        return None
    if is_recorded():
        return "torch.jit.trace and ONNX record the reference only"
    if is_transformed():
        return "torch.func and forward mode differentiate the reference only"
    return None


def check_call(call: EMCall) -> None:
    """Refuse what cannot be routed.

    Raises: ShapeError, as `route_em` says.
    """
    check_dims("poses", call.poses, "[B, N, T, S, S]", 5)
    check_dims("activations", call.activations, "[B, N, T]", 3)
    check_dims("weights", call.weights, "[K, T, C, S, S]", 5)
    check_dims("beta_u", call.beta_u, "[C]", 1)
    check_dims("beta_a", call.beta_a, "[C]", 1)
    tensors = {"poses": call.poses, "activations": call.activations, "weights": call.weights}
    tensors |= {"beta_u": call.beta_u, "beta_a": call.beta_a}
    if call.offsets is not None:
        check_dims("offsets", call.offsets, "[K, S, S]", 3)
        tensors["offsets"] = call.offsets
    for name, tensor in tensors.items():
        check_kind(name, tensor, call.poses)
    _, positions, types, rows, side = call.poses.shape
    _, _, parents, *matrix = call.weights.shape
    if rows != side or matrix != [side, side]:
        raise ShapeError(
            f"poses {list(call.poses.shape)} and weights {list(call.weights.shape)} do not fit; pass square "
            "matrices of one side"
        )
    fields = call.fields
    wanted = {
        "poses": (call.poses.shape[1:3], (fields.num_children, types)),
        "activations": (call.activations.shape, (call.poses.shape[0], positions, types)),
        "weights": (call.weights.shape[:2], (fields.num_matrices, types)),
        "beta_u": (call.beta_u.shape, (parents,)),
        "beta_a": (call.beta_a.shape, (parents,)),
    }
    if call.offsets is not None:
        wanted["offsets"] = (call.offsets.shape, (fields.size, side, side))
    for name, (found, right) in wanted.items():
        if tuple(found) != tuple(right):
            raise ShapeError(
                f"{name} has shape {list(tensors[name].shape)}; with {fields.num_children} child positions, "
                f"{fields.num_matrices} matrices a pair, {types} child and {parents} parent types pass "
                f"{list(right)}{', ...' if len(right) < tensors[name].dim() else ''}"
            )
    if 0 in call.weights.shape:
        raise ShapeError(f"weights {list(call.weights.shape)} are empty; give all sizes at least 1")
