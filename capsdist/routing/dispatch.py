"""One function for all forms of routing: checks its arguments, picks a form by name, runs it.

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
    """Return the parent poses [B, J, E] of child poses [B, I, D] under weights [I, J, D, E]."""
    _check(child_poses, weights, "weights", weights.shape, iterations, bias)
    if choose_form(form) == "reference":
        return _reference(child_poses, weights, iterations, bias, none_of_the_above)
    return route_streamed(child_poses, pack_weights(weights), iterations, bias=bias, none_of_the_above=none_of_the_above)


def route_packed(
    child_poses: Tensor,
    packed_weights: Tensor,
    iterations: int = 3,
    *,
    bias: Tensor | None = None,
    none_of_the_above: bool = False,
    form: Form = "auto",
) -> Tensor:
    """Do as `route`, with weights in the fast layout [J, E, D, I] (see `packing`)."""
    shape = unpack_weights(packed_weights).shape if packed_weights.dim() == 4 else packed_weights.shape
    _check(child_poses, packed_weights, "packed_weights", shape, iterations, bias)
    if choose_form(form) == "reference":
        return _reference(child_poses, unpack_weights(packed_weights), iterations, bias, none_of_the_above)
    return route_streamed(child_poses, packed_weights, iterations, bias=bias, none_of_the_above=none_of_the_above)


def choose_form(form: str) -> Literal["reference", "streamed"]:
    """Return the form that `form` means: itself, or for `auto` the fastest that this version has."""
    if form in ("auto", "streamed"):
        return "streamed"
    if form == "reference":
        return "reference"
    raise ShapeError(f"form={form!r} is no form of routing; choose 'auto', 'streamed' or 'reference'")


def _reference(child_poses: Tensor, weights: Tensor, iterations: int, bias: Tensor | None, none: bool) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(child_poses.dtype, weights.dtype), torch.float32)
    wide_bias = None if bias is None else bias.to(dtype)
    with torch.autocast(child_poses.device.type, enabled=False):
        poses = route_reference(
            child_poses.to(dtype), weights.to(dtype), iterations, bias=wide_bias, none_of_the_above=none
        )
    return poses.to(child_poses.dtype)


def _check(child_poses, weights, name, shape, iterations, bias) -> None:
    pass
