"""Class capsules of later routing algorithms, and the fully connected control: [B, I, D] -> [B, J, E].

The length of a parent is the score of its class, as of `ClassCapsules`. An algorithm whose parents have a
score of their own gives them that length.

Shape letters: B images, I children, D child dimension, J parents, E parent dimension, G groups.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from capsdist.errors import ShapeError
from capsdist.models.layers import (
    CapsuleLayer,
    PackedCapsules,
    check_sizes,
    describe,
    initial_sd,
    learned,
    set_to_zero,
)
from capsdist.models.units import hidden_units
from capsdist.ops import squash
from capsdist.routing import RoutingKeywords, RoutingOptions
from capsdist.routing.later.attention import route_attention
from capsdist.routing.later.forms import Backend, LaterOptions
from capsdist.routing.later.grouped import route_grouped
from capsdist.routing.later.heinsen import route_heinsen

__all__ = [
    "AttentionCapsules", "FullyConnectedCapsules", "GroupedCapsules", "HeinsenCapsules",
]  # fmt: skip


class AttentionCapsules(PackedCapsules):
    """Class capsules with self-attention routing (see `capsdist.routing.later.attention`).

    With `log_priors` a learned number B [I, J], 0 at first, is added to the coupling. Initialisation (ours):
    weights as `ClassCapsules`.

    Shapes: child_poses [B, I, D] -> parent_poses [B, J, E].
    Raises: ShapeError if a size is no whole number of at least 1, an option is unknown, or the input does not
    fit.
    """

    def __init__(
        self,
        num_children: int,
        child_dim: int,
        num_parents: int,
        parent_dim: int,
        *,
        log_priors: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(num_children, child_dim, num_parents, parent_dim)
        self.routing = LaterOptions(1, backend)
        self.add_parameters(num_children, log_priors=log_priors)

    def forward(self, child_poses: Tensor) -> Tensor:
        """Return parent_poses [B, J, E] of `child_poses` [B, I, D]."""
        self.check_input(child_poses)
        return route_attention(
            child_poses, self.packed_weights, self.log_priors, backend=self.routing.backend
        )

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return describe(self, self.routing)


class HeinsenCapsules(PackedCapsules):
    """Class capsules with Heinsen routing (see `capsdist.routing.later.heinsen`).

    The logistic function of a parent's score a_j is its length, and its mean mu_j the direction; the paper
    applies cross-entropy to the scores. Initialisation: weights normal with standard deviation 1 / sqrt(D)
    (the author's code has 1 / D), all else 0, as there.

    Shapes: child_poses [B, I, D] -> parent_poses [B, J, E].
    Raises: as `AttentionCapsules`.
    """

    def __init__(
        self,
        num_children: int,
        child_dim: int,
        num_parents: int,
        parent_dim: int,
        *,
        iterations: int = 3,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(num_children, child_dim, num_parents, parent_dim)
        self.routing = LaterOptions(iterations, backend)
        self.vote_bias = nn.Parameter(torch.empty(num_parents, parent_dim, num_children))
        self.beta_use, self.beta_ignore = (
            nn.Parameter(torch.empty(num_children, num_parents)) for _ in range(2)
        )
        self.add_parameters(num_children)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew, and set all else to 0."""
        sd = 1 / math.sqrt(self.child_dim)
        self.draw_weights(lambda weights: weights.normal_(std=sd))
        set_to_zero(self.vote_bias, self.beta_use, self.beta_ignore)

    def forward(self, child_poses: Tensor) -> Tensor:
        """Return parent_poses [B, J, E] of `child_poses` [B, I, D]."""
        self.check_input(child_poses)
        parameters = self.packed_weights, self.vote_bias, self.beta_use, self.beta_ignore
        options = self.routing
        return route_heinsen(child_poses, *parameters, options.iterations, backend=options.backend)

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return describe(self, self.routing)


class GroupedCapsules(CapsuleLayer):
    """Class capsules with dynamic routing in `groups` of children (see `capsdist.routing.later.grouped`).

    The sum over groups is divided by their number, which the authors' code does not do: lengths are scores,
    and those of all networks here are below 1. Children are sorted by type, so that groups of as many are
    groups of types. The parameter `grouped_weights` is [G, J, E, D, I / G]; bias and priors are those of
    `ClassCapsules`. Initialisation (ours): every group as `ClassCapsules` of its children, with totals
    G^(1/4) times as long, so that the mean of G random directions starts about as long as one.

    Shapes: child_poses [B, I, D] -> parent_poses [B, J, E].
    Raises: ShapeError as `ClassCapsules`, or if `groups` does not divide I.
    """

    def __init__(
        self,
        num_children: int,
        child_dim: int,
        num_parents: int,
        parent_dim: int,
        *,
        groups: int = 1,
        iterations: int = 3,
        bias: bool = False,
        log_priors: bool = False,
        **options: Unpack[RoutingKeywords],
    ) -> None:
        super().__init__(num_children, child_dim, num_parents, parent_dim)
        check_sizes(groups=groups)
        if num_children % groups:
            raise ShapeError(f"groups={groups} does not divide num_children={num_children}; use a divisor")
        self.groups, self.routing = groups, RoutingOptions(iterations, **options)
        shape = groups, num_parents, parent_dim, child_dim, num_children // groups
        self.grouped_weights = nn.Parameter(torch.empty(shape))
        self.bias = learned("bias", bias, num_parents, parent_dim)
        self.log_priors = learned("log_priors", log_priors, num_children, num_parents)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew, and set bias and priors to 0."""
        total = 0.4 * self.groups**0.25
        sd = initial_sd(self.num_children // self.groups, self.num_parents, self.parent_dim, total)
        self.grouped_weights.normal_(std=sd)
        set_to_zero(self.bias, self.log_priors)

    def forward(self, child_poses: Tensor) -> Tensor:
        """Return parent_poses [B, J, E] of `child_poses` [B, I, D]."""
        self.check_input(child_poses)
        operands = child_poses, self.grouped_weights, self.routing
        return route_grouped(*operands, bias=self.bias, log_priors=self.log_priors) / self.groups

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"groups={self.groups}, {describe(self, self.routing)}"


class FullyConnectedCapsules(CapsuleLayer):
    """The control without capsules: two fully connected layers with a ReLU between, and squash at the end.

    Its hidden units are as many as make the number of parameters closest to the I J D E of `ClassCapsules`.
    One linear layer would have exactly as many, but it is uniform coupling: sum_i W_ij u_i for all parents at
    once, which `average` is. Initialisation: PyTorch's.

    Shapes: child_poses [B, I, D] -> parent_poses [B, J, E].
    Raises: ShapeError if a size is no whole number of at least 1, or the input does not fit.
    """

    def __init__(self, num_children: int, child_dim: int, num_parents: int, parent_dim: int) -> None:
        super().__init__(num_children, child_dim, num_parents, parent_dim)
        units = hidden_units(num_children, child_dim, num_parents, parent_dim)
        self.hidden = nn.Linear(num_children * child_dim, units)
        self.totals = nn.Linear(units, num_parents * parent_dim)

    def forward(self, child_poses: Tensor) -> Tensor:
        """Return parent_poses [B, J, E] of `child_poses` [B, I, D]."""
        self.check_input(child_poses)
        flat = child_poses.transpose(1, 2).flatten(1)  # a view of primary capsules' memory
        totals = self.totals(functional.relu(self.hidden(flat)))
        return squash(totals.unflatten(1, (self.num_parents, self.parent_dim)))
