"""Convolutional capsules with dynamic routing, and class capsules that share weights over positions.

Shape letters: B images, H and W positions (or one direction), T child types, D child dimension, J types,
E dimension, K places of a kernel.
"""

from __future__ import annotations

import math
from operator import index
from typing import Unpack, get_args

import torch
from torch import Tensor, nn

from capsdist.errors import ShapeError
from capsdist.models.layers import check_floating, check_sizes, learned, set_to_zero
from capsdist.routing import RoutingKeywords, RoutingOptions
from capsdist.routing.common.checks import check_flag, check_name, is_count
from capsdist.routing.common.fields import Padding, fields_of, whole_field
from capsdist.routing.common.precision import wide_dtype
from capsdist.routing.common.sharing import Competition
from capsdist.routing.dynamic.fields.api import route_field_call
from capsdist.routing.dynamic.fields.call import FieldCall

__all__ = [
    "ConvCapsules", "SharedClassCapsules", "check_directions", "coordinates", "directions", "positions",
]  # fmt: skip


class ConvCapsules(nn.Module):
    """Capsules of a grid, fed by those under a kernel through dynamic routing; weights shared over positions.

    A child divides itself over ALL parents whose kernel covers it, types and positions, by fewer at borders
    (Hinton, Sabour, Frosst 2018, section 2.3); `competition="position"` divides it over the types at each
    position alone. `bias`, `log_priors`, `iterations` and `options` are as in `ClassCapsules`; the layer
    keeps them as `routing`.

    `kernel_size` and `stride` are one number, or one for each direction: a tuple of one number makes a layer
    for sequences.

    Initialisation (ours): as `ClassCapsules`, for children of length 1 in the middle of a grid.

    Shapes: child_poses [B, H, W, child_types, child_dim] -> [B, H', W', types, dim], or without W.
    Raises: ShapeError if a size is no whole number of at least 1, an option is none of `route`'s, the input
    has another rank, number of types or dimension, or is smaller than the kernel.

    Example:
        >>> ConvCapsules(8, 8, 12, 16, kernel_size=3, stride=2)(torch.randn(2, 9, 7, 8, 8)).shape
        torch.Size([2, 4, 3, 12, 16])
    """

    def __init__(
        self,
        child_types: int,
        child_dim: int,
        types: int,
        dim: int,
        kernel_size: int | tuple[int, ...] = 3,
        stride: int | tuple[int, ...] = 1,
        padding: Padding = "valid",
        *,
        competition: Competition = "field",
        iterations: int = 3,
        bias: bool = False,
        log_priors: bool = False,
        **options: Unpack[RoutingKeywords],
    ) -> None:
        super().__init__()
        check_sizes(child_types=child_types, child_dim=child_dim, types=types, dim=dim)
        self.child_types, self.child_dim, self.types, self.dim = child_types, child_dim, types, dim
        self.kernel, self.stride = directions(kernel_size, stride, padding)
        check_name("competition", competition, get_args(Competition))
        self.padding: Padding = padding
        self.competition: Competition = competition
        self.routing = RoutingOptions(iterations, **options)
        size = child_types * math.prod(self.kernel)
        self.packed_weights = nn.Parameter(torch.empty(types, dim, child_dim, size))
        self.bias = learned("bias", bias, types, dim)
        self.log_priors = learned("log_priors", log_priors, size, types)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew, and set bias and priors to 0."""
        self.draw_weights(0.4)
        set_to_zero(self.bias, self.log_priors)

    @torch.no_grad()
    def draw_weights(self, total: float) -> None:
        """Draw the weights anew, so that children of length 1 start with totals of this length."""
        places = math.prod(self.kernel)
        seen_by = self.types * max(1.0, places / math.prod(self.stride))
        if self.competition == "position":
            seen_by = self.types
        self.packed_weights.normal_(std=total * seen_by / math.sqrt(self.child_types * places * self.dim))

    def parent_shape(self, child_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the positions of the parents of a grid of children.

        Raises:
            ShapeError: it is smaller than the kernel.
        """
        return fields_of(tuple(child_shape), self.kernel, self.stride, self.padding).parent_shape

    def call(self, child_poses: Tensor) -> FieldCall:
        """Return the call of routing for `child_poses`."""
        shape = positions(child_poses, len(self.kernel), self.child_types, self.child_dim)
        fields = fields_of(shape, self.kernel, self.stride, self.padding)
        flat = child_poses.flatten(1, len(shape))
        return FieldCall(
            flat, self.packed_weights, fields, self.routing, self.competition, self.bias, self.log_priors
        )

    def forward(self, child_poses: Tensor) -> Tensor:
        """Return the poses [B, H', W', types, dim] of the parents of `child_poses`."""
        call = self.call(child_poses)
        return route_field_call(call).unflatten(1, call.fields.parent_shape)

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return (
            f"{self.child_types} x {self.child_dim}D -> {self.types} x {self.dim}D, "
            f"kernel_size={self.kernel}, stride={self.stride}, padding={self.padding!r}, "
            f"competition={self.competition!r}, "
            f"bias={self.bias is not None}, log_priors={self.log_priors is not None}, {self.routing}"
        )


class SharedClassCapsules(nn.Module):
    """One capsule a class, fed by a grid whose capsules of a type share one matrix at all positions.

    With `add_coordinates` the position of the child, from -0.5 to 0.5 in each direction, is added to the
    first dimensions of its vote (Hinton, Sabour, Frosst 2018, section 4: coordinate addition), which tells
    positions apart although they share weights.

    Shapes: child_poses [B, H, W, child_types, child_dim] -> [B, num_parents, parent_dim], or without W.
    Raises: ShapeError as `ConvCapsules`, or if `parent_dim` has no room for the coordinates.
    """

    def __init__(
        self,
        child_types: int,
        child_dim: int,
        num_parents: int,
        parent_dim: int,
        *,
        num_directions: int = 2,
        add_coordinates: bool = True,
        iterations: int = 3,
        bias: bool = False,
        **options: Unpack[RoutingKeywords],
    ) -> None:
        super().__init__()
        check_sizes(
            child_types=child_types, child_dim=child_dim, num_parents=num_parents, parent_dim=parent_dim
        )
        check_directions(num_directions, add_coordinates, parent_dim=parent_dim)
        self.child_types, self.child_dim = child_types, child_dim
        self.num_parents, self.parent_dim = num_parents, parent_dim
        self.num_directions, self.add_coordinates = num_directions, add_coordinates
        self.routing = RoutingOptions(iterations, **options)
        self.packed_weights = nn.Parameter(torch.empty(num_parents, parent_dim, child_dim, child_types))
        self.bias = learned("bias", bias, num_parents, parent_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew, and set the bias to 0."""
        self.draw_weights(0.4)
        set_to_zero(self.bias)

    @torch.no_grad()
    def draw_weights(self, total: float) -> None:
        """Draw the weights anew, so that children of length 1 start with totals of this length.

        Children of one type share a matrix, so that their votes do not cancel: the size of the grid does not
        matter.
        """
        sd = total * self.num_parents / math.sqrt(self.child_types * self.parent_dim)
        self.packed_weights.normal_(std=sd)

    def call(self, child_poses: Tensor) -> FieldCall:
        """Return the call of routing for `child_poses`."""
        shape = positions(child_poses, self.num_directions, self.child_types, self.child_dim)
        flat, weights = child_poses.flatten(1, len(shape)), self.packed_weights
        if self.add_coordinates:  # as further dimensions of the poses, which fixed rows add to the votes
            places = coordinates(shape, flat).to(flat.dtype)[None, :, None].expand(*flat.shape[:3], -1)
            flat = torch.cat((flat, places), 3)
            rows = torch.eye(self.parent_dim, len(shape), device=weights.device, dtype=weights.dtype)
            rows = rows[None, :, :, None].expand(self.num_parents, -1, -1, self.child_types)
            weights = torch.cat((weights, rows), 2)
        return FieldCall(flat, weights, whole_field(shape), self.routing, bias=self.bias)

    def forward(self, child_poses: Tensor) -> Tensor:
        """Return the class capsules [B, num_parents, parent_dim] of `child_poses`."""
        return route_field_call(self.call(child_poses))[:, 0]

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return (
            f"{self.child_types} x {self.child_dim}D -> {self.num_parents} x {self.parent_dim}D, "
            f"add_coordinates={self.add_coordinates}, bias={self.bias is not None}, {self.routing}"
        )


def coordinates(shape: tuple[int, ...], poses: Tensor) -> Tensor:
    """Return where the positions of a grid are, [H * W, 2] or [H, 1], from -0.5 to 0.5, numbered row by row.

    On the device of `poses`; float64 for float64, fp32 for all else.
    """
    options = {"dtype": wide_dtype(poses), "device": poses.device}
    lines = [(torch.arange(size, **options) + 0.5) / size - 0.5 for size in shape]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flatten(0, -2)


def check_directions(num_directions: int, add_coordinates: bool, **room: int) -> None:
    """Raise ShapeError unless there are 1 or 2 directions, and room in votes for a coordinate of each."""
    check_flag("add_coordinates", add_coordinates)
    if num_directions not in (1, 2):
        raise ShapeError(f"num_directions={num_directions!r} must be 1 or 2")
    for name, size in room.items():
        if add_coordinates and size < num_directions:
            raise ShapeError(f"{name}={size} has no room for {num_directions} coordinates; use at least 2")


def directions(
    kernel_size: int | tuple[int, ...], stride: int | tuple[int, ...], padding: Padding
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return kernel and stride of each direction: two, unless a tuple has one number.

    Raises:
        ShapeError: one of the three is none that a layer can have.
    """
    given = {"kernel_size": kernel_size, "stride": stride}
    for name, value in given.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) not in (1, 2) or not all(map(is_count, numbers)):
            raise ShapeError(
                f"{name}={value!r} must be a whole number of at least 1, or a tuple of one or two: one for "
                "each direction"
            )
    check_name("padding", padding, get_args(Padding))
    number = next((len(value) for value in given.values() if isinstance(value, tuple)), 2)
    kernel, steps = (
        tuple(map(index, value if isinstance(value, tuple) else (value,) * number))
        for value in given.values()
    )
    if len(kernel) != len(steps):
        raise ShapeError(
            f"stride={stride!r} has {len(steps)} numbers, but kernel_size={kernel_size!r} {len(kernel)}; "
            "give one for each direction"
        )
    return kernel, steps


def positions(poses: Tensor, num_directions: int, types: int, *dims: int) -> tuple[int, ...]:
    """Return the shape of the grid of poses [B, *grid, types, *dims].

    Raises:
        ShapeError: they are no such tensor.
    """
    check_floating("poses", poses, "poses in float")
    grid = poses.shape[1 : 1 + num_directions]
    if poses.shape[1 + num_directions :] != (types, *dims) or 0 in grid:
        letters = ", ".join(["B", *"HW"[:num_directions], *map(str, (types, *dims))])
        raise ShapeError(f"poses have shape {list(poses.shape)}; this layer was built for [{letters}]")
    return tuple(grid)
