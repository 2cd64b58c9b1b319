"""Capsule parallelism: ranks share the children of a layer, so that its weights exist once over all of them.

The sum over children is all that couples one child to another. So each of P ranks owns a slice of the
children, with their weights [J, E, D, I_p], gradients and optimizer state, and routes it for the images of
ALL ranks; an iteration adds up the totals [B, J, E] of the ranks, and its backward pass what it adds to dV
(see `streamed`), never dV itself: every rank holds that already. The layers around stay data-parallel, each
rank with its own b = B / P images: an all-to-all brings poses [b, I, D] to [B, I_p, D], and gradients back.

Shape letters: B images, b images of a rank, I children, I_p children of a rank, J parents, D child dimension,
E parent dimension, P ranks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from capsdist.errors import ShapeError
from capsdist.routing.common.autograd import way
from capsdist.routing.common.checks import check_dims
from capsdist.routing.dynamic.backends import check_call
from capsdist.routing.dynamic.options import RoutingCall, RoutingOptions
from capsdist.routing.dynamic.streamed import StreamedBackward, route_streamed

__all__ = [
    "Group", "check_splits", "children_of_rank", "exchange_children", "process_group", "route_parallel",
]  # fmt: skip

Group: TypeAlias = dist.ProcessGroup | DeviceMesh | None
"""The ranks that share a layer: a process group, a device mesh of one dimension, or None for all ranks."""


def route_parallel(
    child_poses: Tensor,
    packed_weights: Tensor,
    options: RoutingOptions,
    *,
    group: Group = None,
    bias: Tensor | None = None,
    log_priors: Tensor | None = None,
) -> Tensor:
    """Route as `streamed` does, the images of every rank with weights that are split over the ranks.

    Args:
        child_poses: [b, I, D], all children of this rank's images; b must be the same on all ranks, which
            is not checked (gloo ends the process, NCCL hangs): pad a short last batch.
        packed_weights: [J, E, D, I_p], of the children `children_of_rank`.
        options: as of `route`, those that `check_splits` takes.
        group: the ranks that share the children.
        bias: [J, E], the same on all ranks, or None.
        log_priors: [I_p, J], of this rank's children, or None.

    Returns:
        parent_poses [b, J, E] of this rank's images, in the dtype of `child_poses`.
        Gradients are those of the SUM of the ranks' losses: of `packed_weights`, `bias` and `log_priors`
        complete on each rank; of `child_poses` of the own images.

    Raises:
        ShapeError: shapes or options that do not fit, on all ranks before they exchange anything.

    Cost, in numbers per rank: forward an all-to-all of b I D, and B J E all-reduced per iteration;
    backward B J E gathered, B J E all-reduced per iteration but the first, and the all-to-all.
    """
    check_dims("child_poses", child_poses, "[b, I, D]", 3)
    check_dims("packed_weights", packed_weights, "[J, E, D, I_p]", 4)
    pg = process_group(group)
    own = children_of_rank(child_poses.shape[1], pg)
    num_own = own.stop - own.start
    if packed_weights.shape[3] != num_own:
        raise ShapeError(
            f"packed_weights has {packed_weights.shape[3]} children; rank {dist.get_rank(pg)} of "
            f"{dist.get_world_size(pg)} owns {num_own} of {child_poses.shape[1]}: "
            f"pass those from {own.start} on"
        )
    check_splits(options)
    call = RoutingCall(child_poses[:, own], packed_weights, options, bias, log_priors)
    check_call(call)
    call = replace(call, child_poses=exchange_children(child_poses, pg))
    return _OwnImages.apply(route_streamed(call, group_name=_name(pg)), pg)


def check_splits(options: RoutingOptions) -> None:
    """Raise ShapeError for options that ranks which share children cannot compute with."""
    if options.backend not in ("auto", "streamed") or options.recompute != "streamed":
        raise ShapeError(
            f"class capsules of backend={options.backend!r}, recompute={options.recompute!r} cannot be split "
            "over ranks, which compute as 'streamed'; use backend='auto' and recompute='streamed'"
        )


def process_group(group: Group) -> dist.ProcessGroup | None:
    """Return the process group of a group of any kind; None stays None, as torch.distributed takes it."""
    return group.get_group() if isinstance(group, DeviceMesh) else group


def _name(group: dist.ProcessGroup | None) -> str:
    """Return the name by which torch knows a process group; an operator takes no groups, but names."""
    known = group or dist.group.WORLD
    assert known is not None  # its size was asked for already
    return known.group_name


def children_of_rank(num_children: int, group: Group = None, rank: int | None = None) -> slice:
    """Return the children that a rank owns, this one by default: consecutive, as many on each but for one.

    Raises:
        ShapeError: there are fewer children than ranks.
    """
    pg = process_group(group)
    world_size = dist.get_world_size(pg)
    if num_children < world_size:
        raise ShapeError(
            f"{num_children} children cannot be split over {world_size} ranks; use at most {num_children}"
        )
    rank = dist.get_rank(pg) if rank is None else rank
    return slice(num_children * rank // world_size, num_children * (rank + 1) // world_size)


def exchange_children(child_poses: Tensor, group: Group = None) -> Tensor:
    """Return this rank's children of all images [B, I_p, D], given all children of its images [b, I, D].

    Differentiable: gradients go back the same way. Images come in the order of the ranks, and the result is
    laid out as [B, D, I_p], the fast layout of routing.
    """
    return _Exchange.apply(child_poses.transpose(1, 2), process_group(group)).transpose(1, 2)


def _exchange(poses: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """All-to-all of poses [b, D, I] to [B, D, I_p]."""
    num_images, child_dim, num_children = poses.shape
    ranks = range(dist.get_world_size(group))
    slices = [children_of_rank(num_children, group, rank) for rank in ranks]
    parts = [poses[..., children].flatten() for children in slices]
    own = slices[dist.get_rank(group)]
    found = poses.new_empty(len(ranks) * num_images, child_dim, own.stop - own.start)
    each = [found.numel() // len(ranks)] * len(ranks)
    dist.all_to_all_single(found.view(-1), torch.cat(parts), each, [len(p) for p in parts], group=group)
    return found


def _exchange_back(grad: Tensor, num_children: int, group: dist.ProcessGroup | None) -> Tensor:
    """All-to-all of gradients [B, D, I_p] to [b, D, I]."""
    ranks = range(dist.get_world_size(group))
    shape = len(grad) // len(ranks), grad.shape[1]
    slices = [children_of_rank(num_children, group, rank) for rank in ranks]
    sizes = [shape[0] * shape[1] * (children.stop - children.start) for children in slices]
    found = grad.new_empty(sum(sizes))
    each = [grad.numel() // len(ranks)] * len(ranks)
    dist.all_to_all_single(found, grad.flatten(), sizes, each, group=group)
    parts = zip(found.split(sizes), slices, strict=True)
    return torch.cat([part.view(*shape, own.stop - own.start) for part, own in parts], dim=2)


def _own_images(parent_poses: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return this rank's images [b, J, E] of [B, J, E]."""
    num_own = len(parent_poses) // dist.get_world_size(group)
    return parent_poses.narrow(0, num_own * dist.get_rank(group), num_own).clone()


def _all_images(grad: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Gather the gradients [b, J, E] of all ranks as [B, J, E]."""
    found = grad.new_empty(dist.get_world_size(group) * len(grad), *grad.shape[1:])
    # The second is the name before torch 2.13.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(found, grad.contiguous(), group=group)
    return found


class _Exchange(torch.autograd.Function):
    """`_exchange`, and gradients back; no `jvp` or `vmap`, for compilers refuse Functions that have one."""

    @staticmethod
    def forward(poses: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        return _exchange(poses, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        poses, ctx.group = inputs
        ctx.num_children = poses.shape[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return way(_ExchangeBack, _exchange_back)(grad, ctx.num_children, ctx.group), None


class _ExchangeBack(StreamedBackward):
    """`_exchange_back`, where something may differentiate it."""

    forward = staticmethod(_exchange_back)


class _OwnImages(torch.autograd.Function):
    """`_own_images`, without `jvp` and `vmap` as well; the gradients of all ranks are gathered again."""

    @staticmethod
    def forward(parent_poses: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        return _own_images(parent_poses, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return way(_AllImages, _all_images)(grad, ctx.group), None


class _AllImages(StreamedBackward):
    """`_all_images`, where something may differentiate it."""

    forward = staticmethod(_all_images)
