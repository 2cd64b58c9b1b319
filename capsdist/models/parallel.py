"""Class capsules whose children, and with them all weights, are split over ranks.

Shape letters: B images, b images of a rank, I children, I_p children of a rank, D child dimension, J parents,
E parent dimension.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from capsdist.models.layers import check_child_poses, initial_sd
from capsdist.routing import Gradient
from capsdist.routing.parallel import Group, children_of_rank, process_group, route_parallel

__all__ = ["ParallelClassCapsules", "sum_gradients"]


class ParallelClassCapsules(nn.Module):
    """`ClassCapsules` of which each rank owns a slice of the children: weights, gradient, optimizer state.

    A drop-in for data-parallel networks: each rank passes all children of its own images and gets the parents
    of its own images. `packed_weights` is [J, E, D, I_p] and `log_priors` [I_p, J], of the children
    `own_children`; `bias` is the same on every rank. Divide each rank's loss by the images of ALL ranks, and
    call `sum_gradients` after the backward pass (DistributedDataParallel would mix up the ranks' weights).

    Initialisation: as `ClassCapsules`. The random numbers of all ranks are drawn on each, so that equal seeds
    give different children on different ranks, and leave the generators equal.

    Shapes: child_poses [b, I, D], b the same on every rank -> parent_poses [b, J, E].
    Raises: ShapeError if the input is not [b, num_children, child_dim], or a rank would own no child.

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
        none_of_the_above: bool = False,
        gradient: Gradient = "full",
    ) -> None:
        super().__init__()
        self.num_children, self.child_dim = num_children, child_dim
        self.num_parents, self.parent_dim = num_parents, parent_dim
        self.iterations, self.none_of_the_above = iterations, none_of_the_above
        self.gradient: Gradient = gradient
        self.group = process_group(group)
        self.own_children = children_of_rank(num_children, self.group)
        num_own = self.own_children.stop - self.own_children.start
        self.packed_weights = nn.Parameter(torch.empty(num_parents, parent_dim, child_dim, num_own))
        self.bias = nn.Parameter(torch.zeros(num_parents, parent_dim)) if bias else None
        self.log_priors = nn.Parameter(torch.zeros(num_own, num_parents)) if log_priors else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew, on all ranks at once."""
        sd = initial_sd(self.num_children, self.num_parents, self.parent_dim)
        shape = self.packed_weights.shape[:3]
        for rank in range(dist.get_world_size(self.group)):
            children = children_of_rank(self.num_children, self.group, rank)
            drawn = self.packed_weights.new_empty(*shape, children.stop - children.start).normal_(std=sd)
            if children == self.own_children:
                self.packed_weights.copy_(drawn)
        for parameter in (self.bias, self.log_priors):
            if parameter is not None:
                parameter.zero_()

    def forward(self, child_poses: Tensor) -> Tensor:
        """Return parent_poses [b, J, E] of `child_poses` [b, I, D]."""
        check_child_poses(child_poses, self.num_children, self.child_dim)
        return route_parallel(
            child_poses,
            self.packed_weights,
            self.iterations,
            group=self.group,
            bias=self.bias,
            log_priors=self.log_priors,
            none_of_the_above=self.none_of_the_above,
            gradient=self.gradient,
        )

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return (
            f"children {self.own_children.start} to {self.own_children.stop} of {self.num_children} "
            f"x {self.child_dim}D -> {self.num_parents} x {self.parent_dim}D, iterations={self.iterations}"
        )


def sum_gradients(
    network: nn.Module, *, capsules: Group = None, data: dist.ProcessGroup | DeviceMesh | None = None
) -> None:
    """Add up gradients over ranks, after each rank's backward pass of its own images.

    Layers of `ParallelClassCapsules` hold complete gradients for the images of their `capsules` ranks: these
    are added over `data` only. All other parameters are the same on every rank, and added over both.

    Args:
        network: the same network on all ranks, every parameter with a gradient or on every rank without.
        capsules: the ranks that share children, as given to the layers.
        data: the ranks with the same children and other images, of a mesh with two dimensions; or None.
    """
    split = {
        id(parameter)
        for layer in network.modules()
        if isinstance(layer, ParallelClassCapsules)
        for parameter in layer.parameters()
    }
    for parameter in network.parameters():
        if parameter.grad is None:
            continue
        if id(parameter) not in split:
            dist.all_reduce(parameter.grad, group=process_group(capsules))
        if data is not None:
            dist.all_reduce(parameter.grad, group=process_group(data))
