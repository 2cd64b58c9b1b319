"""Gradients of a network whose class capsules are split over ranks: between backward pass and optimizer."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capsdist.models.parallel.layer import layer_parameters, split_layers, split_parameters

__all__ = ["average_layers", "clip_gradients", "gradient_norm", "squared_norm", "sum_gradients"]


@torch.no_grad()
def sum_gradients(network: nn.Module) -> None:
    """Add up gradients over ranks, after each rank's backward pass of its own images. Collective.

    Layers of `ParallelClassCapsules` hold complete gradients for the images of the ranks that share their
    children: these are added over replicas only. All other parameters are the same on every rank, and added
    over all. With several backward passes a step (accumulation), call it once, after the last.

    Args:
        network: the same network on all ranks, every parameter with a gradient or on every rank without.

    Raises:
        ValueError: there are no `ParallelClassCapsules`.
    """
    layers = split_layers(network)
    own = layer_parameters(network)
    others = [p.grad for name, p in network.named_parameters() if name not in own]
    _all_reduce(others, layers[0].group)
    if layers[0].replicas is not None:
        _all_reduce([p.grad for p in network.parameters()], layers[0].replicas)


@torch.no_grad()
def average_layers(network: nn.Module) -> None:
    """Make the gradients of `ParallelClassCapsules` the mean over ALL ranks of the gradients of their losses.

    For engines that average all other parameters over all ranks. Collective, once a step.
    """
    layers = split_layers(network)
    gradients = [parameter.grad for parameter in layer_parameters(network).values()]
    num_ranks = dist.get_world_size(layers[0].group)
    if layers[0].replicas is not None:
        _all_reduce(gradients, layers[0].replicas)
        num_ranks *= dist.get_world_size(layers[0].replicas)
    for gradient in gradients:
        if gradient is not None:
            gradient /= num_ranks


@torch.no_grad()
def squared_norm(network: nn.Module) -> Tensor:
    """Return the squared norm of the gradients of `ParallelClassCapsules`, over all ranks' children (scalar).

    Collective, after the gradients were summed or averaged.
    """
    split, layers = split_parameters(network), split_layers(network)
    squares = torch.zeros((), device=layers[0].packed_weights.device)
    for layer in layers:
        slices = {id(each.parameter) for each in split.values() if each.layer is layer}
        own, others = (
            _square([p for p in layer.parameters() if (id(p) in slices) is of_slices], squares.device)
            for of_slices in (True, False)
        )
        dist.all_reduce(own, group=layer.group)
        squares = squares + own + others
    return squares


@torch.no_grad()
def gradient_norm(network: nn.Module) -> Tensor:
    """Return the norm of all gradients, over all ranks' children (scalar), the same on all ranks. Collective.

    It is that of the whole network on one rank. To be called after `sum_gradients`.
    """
    squares = squared_norm(network)
    own = layer_parameters(network)
    others = [parameter for name, parameter in network.named_parameters() if name not in own]
    return (squares + _square(others, squares.device)).sqrt()


@torch.no_grad()
def clip_gradients(network: nn.Module, max_norm: float) -> Tensor:
    """Scale gradients so that their norm, over all ranks' children, is at most `max_norm`. Collective.

    To be called after `sum_gradients`. (`torch.nn.utils.clip_grad_norm_` finds another norm on every rank,
    and ranks that scale differently do not keep the same weights.)

    Returns:
        The norm before clipping (scalar), the same on all ranks: that of the whole network on one rank.

    Raises:
        ValueError: there are no `ParallelClassCapsules`.
    """
    norm = gradient_norm(network)
    torch.nn.utils.clip_grads_with_norm_(network.parameters(), max_norm, norm)
    return norm


def _square(parameters: list[nn.Parameter], device: torch.device) -> Tensor:
    """Return the squared norm of the parameters' gradients, at least in fp32."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.to(device, torch.promote_types(norm.dtype, torch.float32)).square()


def _all_reduce(gradients: list[Tensor | None], group: dist.ProcessGroup | None) -> None:
    """Sum each gradient over ranks, all under way at once."""
    works = [dist.all_reduce(grad, group=group, async_op=True) for grad in gradients if grad is not None]
    for work in works:
        if work is not None:  # it is on ranks outside the group
            work.wait()
