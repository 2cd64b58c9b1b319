"""What later algorithms share: their options, the choice between the two forms, sums of votes, read-outs.

Shape letters: B images, I children, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Literal, get_args

import torch
from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing.common.autograd import is_recorded, is_transformed
from capsdist.routing.common.checks import check_dims, check_kind, check_name
from capsdist.routing.common.explanation import Explanation, choose
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.dynamic.options import check_iterations

__all__ = [
    "BACKENDS", "Backend", "LaterOptions", "check_operands", "choose_form", "linear_votes", "make_votes",
    "run_form", "sum_votes", "with_lengths",
]  # fmt: skip

Backend = Literal["auto", "fused", "streamed", "reference"]

BACKENDS = {
    "fused": "kernels for a GPU",
    "streamed": "never stores votes: they are computed again in the backward pass",
    "reference": "the equations as they are written, which keeps all votes",
}
"""What each form is, in the order of preference."""


@dataclass(frozen=True)
class LaterOptions:
    """What a later algorithm is asked for besides its tensors.

    iterations: softmax passes of an iterative algorithm; others have one. backend: `streamed`, `reference`,
    or `auto` for the first that can be; `fused` is refused, because no kernels exist.

    Raises:
        ShapeError: an option has a value that no call can have.
    """

    iterations: int = 3
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        """Check the values."""
        check_iterations(self.iterations)
        check_name("backend", self.backend, get_args(Backend))
        object.__setattr__(self, "iterations", index(self.iterations))


def choose_form(wanted: str) -> Explanation:
    """Say which form a call takes, and why not the others.

    Raises: ShapeError: the form that is asked for by name is none, or cannot be taken.
    """
    check_name("backend", wanted, get_args(Backend))
    return choose(BACKENDS, wanted, _refusal)


def _refusal(name: str) -> str | None:
    """Return in a few words why a form cannot be taken here, or None."""
    if name == "fused":
        return "no GPU kernel exists for this algorithm yet"
    if name == "reference":
        return None
    if is_recorded():
        return "torch.jit.trace and ONNX record the reference only"
    return "torch.func and forward mode differentiate the reference only" if is_transformed() else None


def check_operands(child_poses: Tensor, packed_weights: Tensor, *others: Tensor | None) -> None:
    """Refuse what cannot be routed.

    Raises: ShapeError, as `run_form` says.
    """
    check_dims("child_poses", child_poses, "[B, I, D]", 3)
    check_dims("packed_weights", packed_weights, "[J, E, D, I]", 4)
    _, _, child_dim, num_children = packed_weights.shape
    if child_poses.shape[1:] != (num_children, child_dim):
        raise ShapeError(
            f"child_poses {list(child_poses.shape)} do not fit packed_weights [J, E, D, I] = "
            f"{list(packed_weights.shape)}; pass [B, I, D] = [B, {num_children}, {child_dim}]"
        )
    for tensor in (child_poses, packed_weights, *others):
        if tensor is not None:
            check_kind("an operand", tensor, child_poses)


def run_form(
    streamed: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    wanted: str,
    child_poses: Tensor,
    packed_weights: Tensor,
    *others: Tensor | None,
) -> Tensor:
    """Check the operands, and run one of two forms in at least fp32, also under autocast.

    others: parameters and states, which both forms take after poses [B, I, D] and weights.

    Returns:
        what the form returns, in the dtype of `child_poses`.

    Raises:
        ShapeError: a shape, dtype or device that cannot be, or a form that cannot be taken.
    """
    operands = child_poses, packed_weights, *others
    check_operands(*operands)
    dtype = wide_dtype(child_poses)
    form = reference if choose_form(wanted).backend == "reference" else streamed
    with without_autocast(child_poses):
        wide = [None if tensor is None else tensor.to(dtype) for tensor in operands]
        return form(*wide).to(child_poses.dtype)


def make_votes(child_poses: Tensor, packed_weights: Tensor) -> Tensor:
    """Return all votes [B, I, J, E]: for references."""
    return torch.einsum("bid,jedi->bije", child_poses, packed_weights)


def linear_votes(child_poses: Tensor, packed_weights: Tensor) -> Tensor:
    """Return the sums of votes over children [B, J, E], by one matrix product without votes."""
    flat = child_poses.transpose(1, 2).flatten(1)  # a view, if poses are [B, D, I] in memory
    return (flat @ packed_weights.flatten(2).flatten(0, 1).mT).unflatten(1, packed_weights.shape[:2])


def sum_votes(child_poses: Tensor, packed_weights: Tensor, shares: Tensor) -> Tensor:
    """Return the sums [B, J, E] of votes weighted by `shares` [I, J], which are the same for all images."""
    return linear_votes(child_poses, packed_weights * shares.T[:, None, None])


def with_lengths(poses: Tensor, logits: Tensor) -> Tensor:
    """Return poses [B, J, E] turned into capsules whose length is the logistic function of logits [B, J].

    The direction is that of the pose; a pose of 0 stays 0.
    """
    norm = torch.linalg.vector_norm(poses, dim=-1, keepdim=True)
    return poses / norm.masked_fill(norm == 0, 1) * logits.sigmoid()[..., None]
