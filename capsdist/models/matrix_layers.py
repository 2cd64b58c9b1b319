"""Layers of matrix capsules: a pose matrix and an activation each, routed by EM.

Source: Hinton, Sabour, Frosst, "Matrix capsules with EM routing" (ICLR 2018), section 4.

Shape letters: B images, C channels, H and W pixels, N positions row by row, T types of capsules, S side of a
pose matrix.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Unpack

import torch
from torch import Tensor, nn

from capsdist.errors import ShapeError
from capsdist.models.layers import Conv2d, check_floating, check_sizes
from capsdist.routing.common.fields import Fields
from capsdist.routing.em.api import route_em_call
from capsdist.routing.em.options import EMCall, EMKeywords, EMOptions

__all__ = ["MatrixCapsuleLayer", "MatrixCapsules", "PrimaryMatrixCapsules", "coordinates"]


class MatrixCapsules(NamedTuple):
    """Capsules of a grid: poses [B, N, T, S, S] and activations [B, N, T] in [0, 1]."""

    poses: Tensor
    activations: Tensor


class PrimaryMatrixCapsules(nn.Module):
    """Lowest matrix capsules: linear in the features of a position, activations through a logistic function.

    Shapes: features [B, in_channels, H, W] -> `MatrixCapsules` of N = H * W positions.
    Raises: ShapeError as `Conv2d`, and if `types` or `side` is no whole number of at least 1.

    Example:
        >>> capsules = PrimaryMatrixCapsules(64, types=8)(torch.zeros(2, 64, 14, 14))
        >>> capsules.poses.shape, capsules.activations.shape
        (torch.Size([2, 196, 8, 4, 4]), torch.Size([2, 196, 8]))
    """

    def __init__(self, in_channels: int, types: int, side: int = 4) -> None:
        super().__init__()
        check_sizes(types=types, side=side)
        self.types, self.side = types, side
        self.conv = Conv2d(in_channels, types * (side * side + 1), 1)

    def forward(self, features: Tensor) -> MatrixCapsules:
        """Return the capsules of `features` [B, C, H, W]."""
        found = self.conv(features).flatten(2).transpose(1, 2)  # [B, N, T * (S * S + 1)]
        poses, activations = found.split([self.types * self.side**2, self.types], dim=2)
        return MatrixCapsules(poses.unflatten(2, (self.types, self.side, self.side)), activations.sigmoid())

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"types={self.types}, side={self.side}"


class MatrixCapsuleLayer(nn.Module):
    """Matrix capsules fed by those below through EM routing: convolutional, or one a class.

    `fields` says which children each parent sees; with `Fields.whole` the parents are class capsules, whose
    weights are shared over positions. `add_coordinates` adds the position of the child, row and column
    from -0.5 to 0.5, to the first two elements of the right-hand column of its vote (section 4), so that
    shared weights do not lose it. `iterations` and `options` are those of `route_em`; the layer keeps them as
    `routing`.

    Initialisation (the paper gives none): weights normal with standard deviation 1 / sqrt(S), which gives
    votes the size of the poses; betas 0.

    Shapes: `MatrixCapsules` of fields.num_children positions and `child_types` -> of fields.num_parents and
    `types`.
    Raises: ShapeError if a size is no whole number of at least 1, an option is none of `route_em`'s, or the
    input does not fit.
    """

    def __init__(
        self,
        fields: Fields,
        child_types: int,
        types: int,
        side: int = 4,
        *,
        add_coordinates: bool = False,
        iterations: int = 3,
        **options: Unpack[EMKeywords],
    ) -> None:
        super().__init__()
        check_sizes(child_types=child_types, types=types, side=side)
        self.fields, self.child_types, self.types, self.side = fields, child_types, types, side
        self.routing = EMOptions(iterations, **options)
        self.weights = nn.Parameter(torch.empty(fields.num_matrices, child_types, types, side, side))
        self.beta_u, self.beta_a = nn.Parameter(torch.empty(types)), nn.Parameter(torch.empty(types))
        offsets = coordinates(fields, side) if add_coordinates else None
        self.register_buffer("offsets", offsets, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew, and set the betas to 0."""
        self.weights.normal_(std=1 / math.sqrt(self.side))
        self.beta_u.zero_()
        self.beta_a.zero_()

    def forward(self, children: MatrixCapsules) -> MatrixCapsules:
        """Return the parents of `children`."""
        poses, activations = children
        check_floating("poses", poses, "poses in float")
        offsets = self.offsets
        assert offsets is None or isinstance(offsets, Tensor)
        call = EMCall(
            poses, activations, self.weights, self.beta_u, self.beta_a, self.fields, self.routing, offsets
        )
        return MatrixCapsules(*route_em_call(call))

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"{self.fields}, {self.child_types} -> {self.types} types, side={self.side}, {self.routing}"


def coordinates(fields: Fields, side: int) -> Tensor:
    """Return what coordinate addition adds to the votes of each place of a field, [K, S, S] float32.

    Row and column of the place, from -0.5 to 0.5, are in the first two rows of the last column.

    Raises:
        ShapeError: `side` is 1, and there are two directions.
    """
    if side < len(fields.kernel):
        raise ShapeError(f"side={side} has no room for {len(fields.kernel)} coordinates; use at least 2")
    lines = [(torch.arange(size) + 0.5) / size - 0.5 for size in fields.kernel]
    found = torch.zeros(*fields.kernel, side, side)
    for direction, line in enumerate(torch.meshgrid(*lines, indexing="ij")):
        found[..., direction, -1] = line
    return found.reshape(-1, side, side)
