"""From a whole network to one whose class capsules are split over ranks, and back: networks and states.

P ranks go on from what Q ranks saved by way of the whole state, which any number of ranks reads.
Shape letters: I children, I_p children of a rank, J parents, D child dimension, E parent dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capsdist.errors import ShapeError
from capsdist.models.layers import ClassCapsules
from capsdist.models.parallel.checks import check_splittable
from capsdist.models.parallel.layer import (
    ParallelClassCapsules,
    SplitParameter,
    split_groups,
    split_layers,
    split_parameters,
)
from capsdist.models.parallel.pieces import gather_pieces
from capsdist.routing.dynamic.parallel import Group

__all__ = [
    "gather_optimizer_state", "gather_state", "parallelize", "share_values", "split_optimizer_state",
    "split_state",
]  # fmt: skip


def parallelize(network: nn.Module, group: Group = None) -> nn.Module:
    """Split all `ClassCapsules` of `network` over ranks; return the network, which is changed in place.

    All ranks go on with the values of the first one. Build the optimizer afterwards: parameters are new. A
    layer in several places stays one layer. Hooks and the like are refused, as they would be lost.
    Collective, unless the network is on the meta device; so weights that no single rank could hold:
        with torch.device("meta"):
            network = parallelize(CapsNet(num_classes=1000))
        network.to_empty(device="cuda").load_state_dict(split_state(network, state))

    Args:
        network: the same on all ranks; `ClassCapsules` itself is not changed, and a new layer returned.
        group: as for `ParallelClassCapsules`.

    Raises:
        ShapeError: a layer has fewer children than there are ranks, computes in a backend that cannot be
            split, shares a parameter with another module, or is not plain: a subclass, with hooks,
            parametrized, with parameters, buffers, modules or a forward of others. Nothing was changed or
            exchanged.
        ValueError: there are no class capsules, or some are split already.
    """
    wholes = [each for each in network.modules() if isinstance(each, ClassCapsules)]
    if any(isinstance(each, ParallelClassCapsules) for each in network.modules()):
        extent = "in part" if wholes else "already"
        raise ValueError(f"{type(network).__name__} is split {extent}; call parallelize once, on the whole")
    check_splittable(network, dist.get_world_size(split_groups(group)[0]))
    layers = {whole: _without_values(whole, group) for whole in wholes}
    _broadcast_values(network, group)
    for whole, layer in layers.items():
        _fill(layer, whole)
    for name, module in [*network.named_modules(remove_duplicate=False)]:
        if isinstance(module, ClassCapsules):
            if not name:
                return layers[module]
            network.set_submodule(name, layers[module])
    return network


@torch.no_grad()
def share_values(network: nn.Module) -> None:
    """Give the replicas of `ParallelClassCapsules` the values of the first one. Collective."""
    split = {id(each.parameter) for each in split_parameters(network).values()}
    for layer in split_layers(network):
        for parameter in layer.parameters():
            if layer.replicas is not None:
                dist.broadcast(parameter, group=layer.replicas, group_src=0)
            if id(parameter) not in split:
                dist.broadcast(parameter, group=layer.group, group_src=0)


def split_state(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this rank's part of the `state` of a whole network, for `network.load_state_dict`.

    Not collective: each rank brings the whole state, best memory-mapped (`torch.load(..., mmap=True)`,
    safetensors), of which it reads its own children.

    Args:
        network: split over ranks, see `parallelize`.
        state: tensors by the names of parameters and buffers, weights [J, E, D, I] and log priors [I, J]; or
            by `<parameter>/<slot>`, the optimizer's state in checkpoints of this package.

    Returns:
        A copy of `state`, [J, E, D, I_p] and [I_p, J] of the own children in place of the whole.

    Raises:
        ShapeError: a tensor to be split is not that of the whole network.
        ValueError: the network is not split, or `state` is not by names.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"state is of type {type(state).__name__}; pass tensors by name, as of state_dict()")
    split_layers(network)  # there are some
    split = split_parameters(network)
    return {key: _cut(key, tensor, split.get(key.partition("/")[0])) for key, tensor in state.items()}


def gather_state(network: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the state of the whole network, which a plain `CapsNet` (or other network) loads.

    Collective. It arrives at the first of the ranks that share children (of a mesh: the first of each row),
    on the CPU; other ranks get {}. That rank holds the whole once and a piece of it more; other ranks hold
    nothing more.

    Args:
        network: split over ranks.
        state: what to gather, with keys as for `split_state`; by default `network.state_dict()`.

    Raises:
        ShapeError: a tensor to be gathered is not shaped like its parameter.
    """
    split = split_parameters(network)
    state = network.state_dict() if state is None else state
    whole = {key: _gather(key, tensor, split.get(key.partition("/")[0])) for key, tensor in state.items()}
    return whole if _receives(network) else {}


def split_optimizer_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> dict[str, Any]:
    """Return this rank's part of the state dict of a whole network's optimizer, for its `load_state_dict`.

    Not collective; copies. For optimizers that keep, of a parameter, tensors of its shape and numbers: Adam,
    SGD, ...

    Args:
        network: split over ranks.
        optimizer: over parameters of `network`, in the order in which the whole network's had them.
        state: what `state_dict()` of the whole network's optimizer returned.

    Raises:
        ShapeError: a tensor to be split is not shaped like the whole parameter.
        ValueError: the optimizer has parameters that `network` has not.
    """
    names, split = _names(network, optimizer), split_parameters(network)
    held = {
        number: {
            slot: _cut(f"{names[number]}/{slot}", value, split.get(names[number]))
            for slot, value in slots.items()
        }
        for number, slots in state["state"].items()
    }
    return {**state, "state": held}


def gather_optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state dict of `optimizer` as that of the whole network, which its `load_state_dict` takes.

    Collective; where it arrives, and what is held meanwhile, as for `gather_state`.

    Raises:
        ShapeError: the state of a split parameter is not shaped like it.
        ValueError: the optimizer has parameters that `network` has not.
    """
    names, split, state = _names(network, optimizer), split_parameters(network), optimizer.state_dict()
    held = {
        number: {
            slot: _gather(f"{names[number]}/{slot}", value, split.get(names[number]))
            for slot, value in state["state"][number].items()
        }
        for number in sorted(state["state"])
    }
    return {**state, "state": held} if _receives(network) else {}


def _without_values(whole: ClassCapsules, group: Group) -> ParallelClassCapsules:
    """Return the layer that takes the place of `whole`, on the meta device."""
    with torch.device("meta"):
        return ParallelClassCapsules(
            whole.num_children,
            whole.child_dim,
            whole.num_parents,
            whole.parent_dim,
            group=group,
            bias=whole.bias is not None,
            log_priors=whole.log_priors is not None,
            **asdict(whole.routing),
        ).train(whole.training)


def _fill(layer: ParallelClassCapsules, whole: ClassCapsules) -> None:
    """Give `layer` the values of its own children, in the dtype and on the device of `whole`."""
    split = split_parameters(layer)
    for name, parameter in whole.named_parameters():
        value = parameter.detach()
        if name in split:
            own = layer.local_children
            value = value.narrow(split[name].dim, own.start, own.stop - own.start)
            value = value.clone(memory_format=torch.contiguous_format)
        setattr(layer, name, nn.Parameter(value, parameter.requires_grad))


def _broadcast_values(network: nn.Module, group: Group) -> None:
    """Give all ranks the parameters and buffers of the first."""
    children, replicas = split_groups(group)
    for tensor in (*network.parameters(), *network.buffers()):
        if not tensor.is_meta:
            if replicas is not None:
                dist.broadcast(tensor.detach(), group=replicas, group_src=0)
            dist.broadcast(tensor.detach(), group=children, group_src=0)


def _receives(network: nn.Module) -> bool:
    """Whether gathered states arrive at this rank."""
    return dist.get_rank(split_layers(network)[0].group) == 0


def _names(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the optimizer's parameters, by their numbers in its state dict."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(id(parameter) not in names for parameter in held):
        raise ValueError("optimizer holds parameters that network has not; build it after parallelize")
    return [names[id(parameter)] for parameter in held]


def _cut(key: str, value: Any, split: SplitParameter | None) -> Any:
    """Return a copy of `value`, if it is split of its own children."""
    if not isinstance(value, Tensor):
        return value
    if split is None or not value.dim():
        return value.clone()  # an optimizer would go on with the given tensor, and so change it
    if value.shape != split.whole_shape:
        raise ShapeError(
            f"state has {key!r} of shape {list(value.shape)}, the whole network {list(split.whole_shape)}; "
            "pass the state of a whole network of these sizes"
        )
    own = split.layer.local_children
    return value.narrow(split.dim, own.start, own.stop - own.start).clone(
        memory_format=torch.contiguous_format
    )


def _gather(key: str, value: Any, split: SplitParameter | None) -> Any:
    """Return all ranks' children of `value` on the first rank's CPU; nothing of use on other ranks."""
    if not isinstance(value, Tensor):
        return value
    if split is None or not value.dim():
        return value.detach().to("cpu", copy=True)
    if value.shape != split.parameter.shape:
        raise ShapeError(
            f"state has {key!r} of shape {list(value.shape)}, its parameter {list(split.parameter.shape)}; "
            "gather tensors that are split like their parameter"
        )
    whole = torch.empty(split.whole_shape, dtype=value.dtype) if _receives(split.layer) else None
    filled = 0
    for piece in gather_pieces(value, split):
        assert whole is not None  # other ranks get no pieces
        whole.view(-1)[filled : filled + len(piece)] = piece
        filled += len(piece)
    return whole
