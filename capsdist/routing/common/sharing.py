"""How children divide themselves over parents in receptive fields, as it is written: the reference.

Shape letters: N child positions, T child types, P parent positions, C parent types, K places of a field,
M parent positions that see a child at most.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from capsdist.routing.common.fields import Fields

__all__ = ["Competition", "log_sigmoid", "share"]

Competition = Literal["field", "position"]
"""Who competes for a child: the parents of all types at all positions that see it, or the types at each."""


def share(
    logits: Tensor, fields: Fields, competition: Competition, *, none_of_the_above: bool = False
) -> Tensor:
    """Return how each child divides itself over its parents: shares that sum to 1, whatever the logits.

    Args:
        logits: [..., K, P, T, C] of the child at place k of the field of p, of type t, and of parent (p, c).
        fields: who sees whom. What is at a place without a child is undefined.
        competition: `field`: a softmax over all parents that see the child, positions and types; `position`:
            over the types at each position alone, so that a child counts once a position.
        none_of_the_above: let one more logit, of 0, compete for every child.

    Returns:
        [..., K, P, T, C].
    """
    if competition == "position":
        if none_of_the_above:
            return functional.pad(logits, (0, 1)).softmax(-1)[..., :-1]
        return logits.softmax(-1)
    of_position = _log_sum_exp(logits, -1)  # [..., K, P, T]
    of_pairs = functional.pad(of_position.flatten(-3, -2), (0, 0, 0, 1), value=float("-inf"))
    of_child = of_pairs[..., fields.parents, :]  # [..., M, N, T]: of all parents that see it
    seen = (fields.num_seeing > 0)[:, None]
    of_child = _log_sum_exp(of_child.where(seen, 0.0), -3)  # children that nobody sees: any number
    if none_of_the_above:
        of_child = -log_sigmoid(-of_child)  # log(exp(x) + exp(0))
    of_child = functional.pad(of_child, (0, 0, 0, 1), value=float("inf"))  # of places without a child
    return (logits - of_child[..., fields.children, :, None]).exp()


def log_sigmoid(values: Tensor) -> Tensor:
    """Return log(1 / (1 + exp(-x))), also of x far below 0 in the programs that exporters write.

    They write that of torch as the logarithm of a sigmoid, which may be 0. At 0 the gradient is 1/2.
    """
    return torch.minimum(values, values.new_zeros(())) - (-values.abs()).exp().log1p()


def _log_sum_exp(values: Tensor, dim: int) -> Tensor:
    """Return log sum exp; the operator of ONNX overflows and underflows, for which that of torch is taken."""
    top = values.detach().amax(dim, keepdim=True)
    return (values - top).exp().sum(dim).log() + top.squeeze(dim)
