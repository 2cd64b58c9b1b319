"""Parents are the squashed means of all votes. Shape letters as in `capsdist.routing`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.ops import squash
from capsdist.routing.common.autograd import BackwardPass, Pass, way
from capsdist.routing.common.checks import check_dims, check_kind
from capsdist.routing.common.precision import wide_dtype, without_autocast
from capsdist.routing.common.tiling import Pieces, Scratch, slices

TILE = 8  # children


@dataclass(frozen=True)
class AveragedOptions:
    """sharpness: factor of the means before squash, above 0."""

    sharpness: float = 1.0

    def __post_init__(self) -> None:
        """Check the value."""
        if not self.sharpness > 0:
            raise ShapeError(f"sharpness={self.sharpness!r} must be above 0")


def route_averaged(child_poses: Tensor, packed_weights: Tensor, options: AveragedOptions) -> Tensor:
    """Return parent_poses [B, J, E] of child_poses [B, I, D] and packed_weights [J, E, D, I]."""
    check_dims("child_poses", child_poses, "[B, I, D]", 3)
    check_dims("packed_weights", packed_weights, "[J, E, D, I]", 4)
    check_kind("packed_weights", packed_weights, child_poses)
    with without_autocast(child_poses):
        totals = way(_Totals, _totals)(child_poses, packed_weights)
        return squash(options.sharpness * totals).to(child_poses.dtype)


def _totals(child_poses: Tensor, packed_weights: Tensor) -> Tensor:
    """Return the sum of votes [B, J, E] by a coupling of 1 / J, a tile of children at a time."""
    num_parents, parent_dim, _, num_children = packed_weights.shape
    scratch = Scratch(wide_dtype(child_poses, packed_weights), child_poses.device)
    poses, weights = child_poses.transpose(1, 2), Pieces(scratch, "weights", packed_weights)
    totals = scratch.take("totals", len(poses), num_parents * parent_dim).zero_()
    for tile in slices(num_children, TILE):
        tile_poses = scratch.fit("poses", poses[..., tile]).flatten(1)
        matrix = weights.at(slice(0, num_parents), tile).flatten(0, 1)
        totals.addmm_(tile_poses, matrix.mT, alpha=1 / num_parents)
    return totals.unflatten(1, (num_parents, parent_dim))


def _totals_backward(grad: Tensor, child_poses: Tensor, packed_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of poses [B, I, D] and weights [J, E, D, I]."""
    num_parents, _, child_dim, num_children = packed_weights.shape
    scratch = Scratch(grad.dtype, grad.device)
    poses, weights = child_poses.transpose(1, 2), Pieces(scratch, "weights", packed_weights)
    rows = grad.flatten(1) / num_parents
    d_poses = grad.new_zeros(poses.shape)
    d_weights = grad.new_zeros(packed_weights.shape)
    sums = Pieces(scratch, "d_weights", d_weights, sums=True)
    for tile in slices(num_children, TILE):
        matrix = weights.at(slice(0, num_parents), tile).flatten(0, 1)
        d_poses[..., tile] = (rows @ matrix).unflatten(1, (child_dim, -1))
        tile_poses = scratch.fit("poses", poses[..., tile]).flatten(1)
        sums.at(slice(0, num_parents), tile).flatten(0, 1).addmm_(rows.mT, tile_poses)
    sums.flush()
    return d_poses.transpose(1, 2).to(child_poses.dtype), d_weights.to(packed_weights.dtype)


class _Totals(Pass):
    @staticmethod
    def forward(child_poses: Tensor, packed_weights: Tensor) -> Tensor:
        return _totals(child_poses, packed_weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return way(_TotalsBackward, _totals_backward)(grad, *ctx.saved_tensors)


class _TotalsBackward(BackwardPass):
    forward = staticmethod(_totals_backward)
