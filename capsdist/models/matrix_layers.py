"""Layers of matrix capsules: a pose matrix and an activation each, routed by EM.

Source: Hinton, Sabour, Frosst, "Matrix capsules with EM routing" (ICLR 2018), section 4.

Shape letters: B images, C channels, H and W positions (or one direction), T types of capsules, S side of a
pose matrix, J classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from capsdist.errors import ShapeError
from capsdist.models.conv_capsules import check_directions, coordinates, directions, positions
from capsdist.models.layers import Conv2d, check_sizes
from capsdist.ops.checks import check_tensor
from capsdist.routing.common.fields import Fields, Padding, fields_of, whole_field
from capsdist.routing.em.api import route_em_call
from capsdist.routing.em.options import EMCall, EMKeywords, EMOptions

__all__ = ["MatrixCapsules", "MatrixClassCapsules", "MatrixConvCapsules", "PrimaryMatrixCapsules"]


class MatrixCapsules(NamedTuple):
    """Capsules of a grid: poses [B, H, W, T, S, S] and activations [B, H, W, T] in [0, 1]; or without W."""

    poses: Tensor
    activations: Tensor


class PrimaryMatrixCapsules(nn.Module):
    """Lowest matrix capsules: linear in the features of a position, activations through a logistic function.

    Shapes: features [B, in_channels, H, W] -> `MatrixCapsules` of the same grid.
    Raises: ShapeError as `Conv2d`, and if `types` or `side` is no whole number of at least 1.

    Example:
        >>> capsules = PrimaryMatrixCapsules(64, types=8)(torch.zeros(2, 64, 14, 14))
        >>> capsules.poses.shape, capsules.activations.shape
        (torch.Size([2, 14, 14, 8, 4, 4]), torch.Size([2, 14, 14, 8]))
    """

    def __init__(self, in_channels: int, types: int, side: int = 4) -> None:
        super().__init__()
        check_sizes(types=types, side=side)
        self.types, self.side = types, side
        self.conv = Conv2d(in_channels, types * (side * side + 1), 1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights for features after a ReLU (He et al. 2015); the paper gives none."""
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        assert self.conv.bias is not None
        self.conv.bias.zero_()

    def forward(self, features: Tensor) -> MatrixCapsules:
        """Return the capsules of `features` [B, C, H, W]."""
        found = self.conv(features).permute(0, 2, 3, 1)  # [B, H, W, T * (S * S + 1)]
        poses, activations = found.split([self.types * self.side**2, self.types], dim=3)
        return MatrixCapsules(poses.unflatten(3, (self.types, self.side, self.side)), activations.sigmoid())

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"types={self.types}, side={self.side}"


class _RoutedByEM(nn.Module):
    """What convolutional and class capsules share: parameters, and one call of `route_em_call`."""

    def __init__(
        self,
        num_matrices: int,
        child_types: int,
        types: int,
        side: int,
        iterations: int,
        **options: Unpack[EMKeywords],
    ) -> None:
        super().__init__()
        check_sizes(child_types=child_types, types=types, side=side)
        self.child_types, self.types, self.side = child_types, types, side
        self.routing = EMOptions(iterations, **options)
        self.weights = nn.Parameter(torch.empty(num_matrices, child_types, types, side, side))
        self.beta_u, self.beta_a = nn.Parameter(torch.empty(types)), nn.Parameter(torch.empty(types))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew, and set the betas to 0."""
        self.weights.normal_(std=1 / math.sqrt(self.side))
        self.beta_u.zero_()
        self.beta_a.zero_()

    @property
    def matrices(self) -> Tensor:
        """W of Procedure 1, [K, T, types, S, S]: the weights times sqrt(K T), for K places and T child types.

        The pose of a parent is a mean of votes, which makes it sqrt(n) times smaller than n votes that do not
        agree. Votes are larger by that, so that poses keep their size from layer to layer, and variances
        stay far above their floor. As a factor, because Adam's steps have the size of O(1) weights.
        """
        num_matrices, child_types = self.weights.shape[:2]
        return self.weights * math.sqrt(num_matrices * child_types)

    def _grid(self, children: MatrixCapsules, num_directions: int) -> tuple[int, ...]:
        """Return the shape of the grid of children.

        Raises:
            ShapeError: they are no matrix capsules that the layer was built for.
        """
        if not hasattr(children, "activations"):
            raise ShapeError(
                f"children are of type {type(children).__name__}; pass MatrixCapsules(poses, activations)"
            )
        shape = positions(children.poses, num_directions, self.child_types, self.side, self.side)
        check_tensor("activations", children.activations)
        if children.activations.shape != children.poses.shape[:-2]:
            raise ShapeError(
                f"activations have shape {list(children.activations.shape)}; with poses "
                f"{list(children.poses.shape)} pass {list(children.poses.shape[:-2])}"
            )
        return shape

    def _call(self, children: MatrixCapsules, fields: Fields, offsets: Tensor | None = None) -> EMCall:
        """Return the call of routing from `children` of a grid to the parents of `fields`."""
        directions = len(fields.child_shape)
        poses = children.poses.flatten(1, directions)
        activations = children.activations.flatten(1, directions)
        parameters = self.matrices, self.beta_u, self.beta_a
        return EMCall(poses, activations, *parameters, fields, self.routing, offsets)

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"{self.child_types} -> {self.types} types, side={self.side}, {self.routing}"


class MatrixConvCapsules(_RoutedByEM):
    """Matrix capsules of a grid, fed by those under a kernel through EM routing; all positions share weights.

    A child divides itself over all parents whose kernel covers it (section 4). `kernel_size` and `stride`
    are one number, or one for each direction. `iterations` and `options` are those of `route_em`; the layer
    keeps them as `routing`.

    Initialisation (the paper gives none): weights normal with standard deviation 1 / sqrt(S), multiplied in
    each pass (`matrices`) so that parents' poses have the size of the children's; betas 0.

    Shapes: `MatrixCapsules` with poses [B, H, W, child_types, S, S] -> with [B, H', W', types, S, S].
    Raises: ShapeError if a size is no whole number of at least 1, an option is none of `route_em`'s, or the
    input does not fit.
    """

    def __init__(
        self,
        child_types: int,
        types: int,
        kernel_size: int | tuple[int, ...] = 3,
        stride: int | tuple[int, ...] = 1,
        padding: Padding = "valid",
        *,
        side: int = 4,
        iterations: int = 3,
        **options: Unpack[EMKeywords],
    ) -> None:
        self.kernel, self.stride = directions(kernel_size, stride, padding)
        self.padding: Padding = padding
        super().__init__(math.prod(self.kernel), child_types, types, side, iterations, **options)

    def call(self, children: MatrixCapsules) -> EMCall:
        """Return the call of routing for `children`."""
        shape = self._grid(children, len(self.kernel))
        return self._call(children, fields_of(shape, self.kernel, self.stride, self.padding))

    def forward(self, children: MatrixCapsules) -> MatrixCapsules:
        """Return the parents of `children`."""
        call = self.call(children)
        poses, activations = route_em_call(call)
        grid = call.fields.parent_shape
        return MatrixCapsules(poses.unflatten(1, grid), activations.unflatten(1, grid))

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        grid = f"kernel_size={self.kernel}, stride={self.stride}, padding={self.padding!r}"
        return f"{grid}, {super().extra_repr()}"


class MatrixClassCapsules(_RoutedByEM):
    """One matrix capsule a class, fed by a grid whose capsules of a type share one matrix at all positions.

    With `add_coordinates` the position of the child, from -0.5 to 0.5 in each direction, is added to the
    first elements of the right-hand column of its vote (section 4: coordinate addition), so that shared
    weights do not lose it.

    Shapes: `MatrixCapsules` with poses [B, H, W, child_types, S, S] -> poses [B, num_classes, S, S] and
    activations [B, num_classes].
    Raises: ShapeError as `MatrixConvCapsules`.
    """

    def __init__(
        self,
        child_types: int,
        num_classes: int,
        *,
        num_directions: int = 2,
        side: int = 4,
        add_coordinates: bool = True,
        iterations: int = 3,
        **options: Unpack[EMKeywords],
    ) -> None:
        super().__init__(1, child_types, num_classes, side, iterations, **options)
        check_directions(num_directions, add_coordinates, side=side)
        self.num_directions, self.add_coordinates = num_directions, add_coordinates

    def call(self, children: MatrixCapsules) -> EMCall:
        """Return the call of routing for `children`."""
        shape = self._grid(children, self.num_directions)
        offsets = _offsets(shape, self.side, children.poses) if self.add_coordinates else None
        return self._call(children, whole_field(shape), offsets)

    def forward(self, children: MatrixCapsules) -> MatrixCapsules:
        """Return the class capsules, poses [B, J, S, S] and activations [B, J]."""
        poses, activations = route_em_call(self.call(children))
        return MatrixCapsules(poses[:, 0], activations[:, 0])


def _offsets(shape: tuple[int, ...], side: int, poses: Tensor) -> Tensor:
    """Return what coordinate addition adds to the votes of each position, [K, S, S]; dtype as `coordinates`.

    Row and column of the position are in the first rows of the last column.
    """
    places = coordinates(shape, poses)
    return functional.pad(places[..., None], (side - 1, 0, 0, side - places.shape[1]))
