"""Class capsules whose children, and with them all weights, are split over ranks.

Shape letters: B images, b images of a rank, I children, I_p children of a rank, J parents, D child dimension,
E parent dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from typing import Any, NamedTuple, Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from capsdist.errors import ShapeError
from capsdist.models.layers import PackedCapsules, describe
from capsdist.routing import RoutingKeywords, RoutingOptions
from capsdist.routing.dynamic.parallel import (
    Group,
    check_splits,
    children_of_rank,
    process_group,
    route_parallel,
)

__all__ = [
    "ParallelClassCapsules", "SplitParameter", "layer_parameters", "split_groups", "split_layers",
    "split_parameters", "whole_shapes",
]  # fmt: skip

_DRAWN_AT_ONCE = 1 << 22


class ParallelClassCapsules(PackedCapsules):
    """`ClassCapsules` of which each rank owns a slice of the children: weights, gradient, optimizer state.

    A drop-in for data-parallel networks: each rank passes all children of its own images and gets the parents
    of its own images. `packed_weights` is [J, E, D, I_p] and `log_priors` [I_p, J], of the children
    `local_children`; `bias` is the same on every rank. Divide each rank's loss by the images of ALL ranks,
    and call `sum_gradients` after the backward pass. (DistributedDataParallel would mix up the weights.)

    `group`: the ranks that share the children: a process group, a device mesh of one dimension, or None for
    all ranks. A mesh of two dimensions is (replicas, children): ranks of a row share the children, ranks of a
    column own the same ones and see other images.

    Collective: ranks that share children call it together, in evaluation too, each with the same number b of
    images. Pad a short last batch, and give the padding weight 0 in the loss. Ranks that differ in b end the
    process (gloo) or hang (NCCL), as finding out takes one more exchange. They make it, and raise, if the
    layer is built with TORCH_DISTRIBUTED_DEBUG=INFO or DETAIL (of itself torch names no b, even then).

    Initialisation: as `ClassCapsules`. Each rank draws the weights of all ranks, a few rows at a time, and
    keeps its own children. On a CPU they are those that `ClassCapsules` draws from the same seed (of a
    truncated normal distribution if all ranks have at most 4 million), and the generators are left equal.

    Shapes: child_poses [b, I, D], b the same on every rank -> parent_poses [b, J, E].
    Raises: ShapeError if a size is no whole number of at least 1, an option is none of `route`'s, a rank
    would own no child, the mesh has other dimensions, or the input is not [b, num_children, child_dim]; in
    debugging, if ranks differ in b.

    Example, after `torch.distributed.init_process_group`:
        layer = ParallelClassCapsules(6272, 8, num_parents=1000, parent_dim=16)
        scores = layer(child_poses).norm(dim=-1)
    """

    def __init__(
        self,
        num_children: int,
        child_dim: int,
        num_parents: int,
        parent_dim: int,
        *,
        group: Group = None,
        iterations: int = 3,
        bias: bool = False,
        log_priors: bool = False,
        **options: Unpack[RoutingKeywords],
    ) -> None:
        super().__init__(num_children, child_dim, num_parents, parent_dim)
        self.routing = RoutingOptions(iterations, **options)
        check_splits(self.routing)
        self.group, self.replicas = split_groups(group)
        self.local_children = children_of_rank(num_children, self.group)
        level = dist.get_debug_level()  # pyright: ignore[reportPrivateImportUsage]
        self._checks_images = level.name != "OFF"
        num_own = self.local_children.stop - self.local_children.start
        self.add_parameters(num_own, bias=bias, log_priors=log_priors)

    @torch.no_grad()
    def draw_weights(self, draw: Callable[[Tensor], object]) -> None:
        """Draw the weights of all ranks anew by `draw`, which fills any tensor in place, number by number."""
        own = self.packed_weights
        if own.is_meta:
            return
        rows = own.view(-1, own.shape[3])
        # The CPU's generator draws normal numbers in groups of 16: in blocks of whole groups it draws what it
        # draws in one go. So the rows of a block are a multiple of 16, and the last one has at least 16.
        step = 16 * max(1, _DRAWN_AT_ONCE // (16 * self.num_children))
        stops = [*range(step, len(rows) - 15, step), len(rows)]
        for start, stop in pairwise([0, *stops]):
            drawn = rows.new_empty(stop - start, self.num_children)
            draw(drawn)
            rows[start:stop] = drawn[:, self.local_children]

    def forward(self, child_poses: Tensor) -> Tensor:
        """Return parent_poses [b, J, E] of `child_poses` [b, I, D]."""
        self.check_input(child_poses)
        if self._checks_images:
            _check_num_images(child_poses, self.group)
        return route_parallel(
            child_poses,
            self.packed_weights,
            self.routing,
            group=self.group,
            bias=self.bias,
            log_priors=self.log_priors,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> ParallelClassCapsules:
        """Copy everything (averages of weights do) but the process groups, which cannot be."""
        memo |= {id(group): group for group in (self.group, self.replicas)}
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        return copied

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        own = self.local_children
        return f"children {own.start} to {own.stop} of {describe(self, self.routing)}"


class SplitParameter(NamedTuple):
    """A parameter of which a rank owns a slice: its layer, and the dimension that counts children."""

    layer: ParallelClassCapsules
    parameter: nn.Parameter
    dim: int

    @property
    def whole_shape(self) -> torch.Size:
        """The shape of all ranks' slices together."""
        shape = list(self.parameter.shape)
        shape[self.dim] = self.layer.num_children
        return torch.Size(shape)

    @property
    def row(self) -> int:
        """Numbers of the whole from one index of the dimensions before children to the next."""
        return math.prod(self.whole_shape[self.dim :])

    def columns(self, rank: int | None = None) -> slice:
        """Return the numbers of a row that a rank of the layer's group owns, this one by default."""
        children = children_of_rank(self.layer.num_children, self.layer.group, rank)
        each = self.row // self.layer.num_children
        return slice(children.start * each, children.stop * each)


def split_parameters(network: nn.Module) -> dict[str, SplitParameter]:
    """Return the parameters of which every rank owns other children, by all their names in `network`."""
    dims = {"packed_weights": 3, "log_priors": 0}
    return {
        f"{prefix}.{name}" if prefix else name: SplitParameter(layer, parameter, dims[name])
        for prefix, layer in network.named_modules(remove_duplicate=False)
        if isinstance(layer, ParallelClassCapsules)
        for name, parameter in layer.named_parameters()
        if name in dims
    }


def layer_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters of `ParallelClassCapsules` in `network` by name, each once; {} without any."""
    layers = [layer for layer in network.modules() if isinstance(layer, ParallelClassCapsules)]
    own = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return {name: parameter for name, parameter in network.named_parameters() if id(parameter) in own}


def whole_shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of the parameters of the whole network, whether or not it is split, by name."""
    split = split_parameters(network)
    return {
        name: split[name].whole_shape if name in split else parameter.shape
        for name, parameter in network.named_parameters()
    }


def split_layers(network: nn.Module) -> list[ParallelClassCapsules]:
    """Return the layers of `network` that are split over ranks; ValueError if there are none."""
    layers = [layer for layer in network.modules() if isinstance(layer, ParallelClassCapsules)]
    if not layers:
        raise ValueError(f"{type(network).__name__} has no ParallelClassCapsules; call parallelize first")
    return layers


def split_groups(group: Group) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """Return the ranks that share children, and those that own the same ones, if there are any."""
    if not isinstance(group, (dist.ProcessGroup, DeviceMesh, type(None))):
        raise ShapeError(
            f"group is of type {type(group).__name__}; pass a process group, a device mesh, or None for all"
        )
    if not isinstance(group, DeviceMesh) or group.ndim == 1:
        return process_group(group), None
    if group.ndim != 2:
        raise ShapeError(
            f"mesh has {group.ndim} dimensions; pass one of 1 (children) or 2 (replicas, children)"
        )
    return group.get_group(1), group.get_group(0)


def _check_num_images(child_poses: Tensor, group: dist.ProcessGroup | None) -> None:
    """Raise ShapeError on all ranks unless all have the same number of images."""
    own = torch.tensor([len(child_poses)], device=child_poses.device)
    found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, own, group=group)
    numbers = torch.cat(found).tolist()
    if len(set(numbers)) > 1:
        raise ShapeError(
            f"child_poses has b={numbers} images on the ranks in turn; pad to {max(numbers)} on each"
        )
