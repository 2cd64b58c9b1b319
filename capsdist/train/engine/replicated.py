"""State of parameters that every rank holds, whole or its part of them: handed out, checked, taken over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capsdist.errors import CheckpointError
from capsdist.models.parallel.layer import SplitParameter, split_parameters, whole_shapes
from capsdist.models.parallel.pieces import gather_pieces, take_pieces
from capsdist.train.averages import as_held, as_stored
from capsdist.train.optim import StateForm, create_state, trained_parameters
from capsdist.train.state import (
    EngineState,
    Pieces,
    Stored,
    check_tensors,
    copy_into,
    first_unfit,
    in_memory,
    pieces_of,
)  # fmt: skip

__all__ = [
    "checked_state", "fixed_tensors", "load_parameters", "load_replicated", "one_step_count",
    "replicated_state", "shapes_of", "trained_shapes",
]  # fmt: skip


def replicated_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    form: StateForm,
    *,
    rank: int = 0,
    parameters: Mapping[str, nn.Parameter] | None = None,
) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """Return what rank `rank` adds to an `EngineState`: weights, and the optimizer's state by parameter name.

    form: that of the optimizer's state, which holds all `parameters`: trained ones of `model`. Default: all,
    and the `fixed_tensors`. What is split over ranks comes in pieces from those that share it, the rest from
    rank 0. Memory is shared with the engine.
    """
    split = split_parameters(model)
    weights: dict[str, Stored] = {}
    slots: dict[str, Stored] = {}
    if parameters is None:
        parameters = trained_parameters(model)
        weights |= {} if rank else fixed_tensors(model)
    for name, parameter in parameters.items():
        held = optimizer.state[parameter]
        if name in split and _sends(split[name]):
            weights[name] = _in_pieces(parameter, split[name])
            slots |= {f"{name}/{slot}": _in_pieces(held[slot], split[name]) for slot in form.slots}
        elif name not in split and rank == 0:
            weights[name] = parameter.detach()
            slots |= {f"{name}/{slot}": held[slot] for slot in form.slots}
        if form.counts_steps and rank == 0:
            slots[f"{name}/step"] = held["step"]
    as_stored(weights, slots)
    return weights, slots


def load_replicated(
    state: EngineState, model: nn.Module, optimizer: torch.optim.Optimizer, form: StateForm
) -> None:
    """Copy `state` into the network and its optimizer; of what is split over ranks each its own part.

    Raises:
        CheckpointError: as `checked_state`.
    """
    fixed = fixed_tensors(model)
    weights, slots = checked_state(state, trained_shapes(model), shapes_of(fixed), form)
    for name, tensor in fixed.items():
        copy_into(tensor, weights[name])
    load_parameters(weights, slots, model, optimizer, form, trained_parameters(model))


def load_parameters(
    weights: Mapping[str, Stored],
    slots: Mapping[str, Stored],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    form: StateForm,
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Copy what `checked_state` has returned into `parameters` of `model`, and their state in `optimizer`."""
    split = split_parameters(model)
    for name, parameter in parameters.items():
        values = {name: parameter.detach()}
        held = optimizer.state.get(parameter) or create_state(optimizer, parameter, form)
        values |= {f"{name}/{slot}": tensor for slot, tensor in held.items() if f"{name}/{slot}" in slots}
        for key, target in values.items():
            value = weights[key] if key == name else slots[key]
            if name in split and target.dim():
                take_pieces(target, pieces_of(value), split[name])
            else:
                copy_into(target, value)


def checked_state(
    state: EngineState,
    parameters: Mapping[str, torch.Size],
    fixed: Mapping[str, torch.Size],
    form: StateForm,
) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """Return what `state` holds of a network with these shapes, and an optimizer of `form`.

    That is the trained weights with the `fixed_tensors`, and by `<parameter>/<slot>` the optimizer's state.
    parameters: of the `trained_parameters`.

    Raises:
        CheckpointError: naming the first tensor that is missing, left over, of another shape, or in Adam's
            state with values that Adam cannot have: a number of steps below 0, for example.
    """
    check_tensors(state.model, {**parameters, **fixed})
    stored = ["trained" if slot == "average" else slot for slot in form.slots]
    expected = {f"{name}/{slot}": shape for name, shape in parameters.items() for slot in stored}
    if form.counts_steps:
        expected |= {f"{name}/step": torch.Size([]) for name in parameters}
    check_tensors(state.optimizer, expected)
    if (found := first_unfit(state.optimizer)) is not None:
        raise CheckpointError(
            f"checkpoint holds {found!r} with values that Adam cannot have; resume from an older checkpoint"
        )
    weights, slots = dict(state.model), dict(state.optimizer)
    as_held(weights, slots)
    return weights, slots


def one_step_count(state: EngineState, parameters: Iterable[str], needed_by: str, remedy: str) -> int:
    """Return the number of steps that Adam has done, equal for all `parameters`.

    Raises:
        CheckpointError: they differ; `needed_by` needs one number.
    """
    steps = {int(in_memory(state.optimizer[f"{name}/step"])) for name in parameters}
    if len(steps) != 1:
        raise CheckpointError(
            f"checkpoint holds parameters of {sorted(steps)} steps, {needed_by} needs one number for all; "
            f"{remedy}"
        )
    return steps.pop()


def fixed_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what else belongs to the state, by name: frozen parameters, and buffers.

    Not those buffers that a module rebuilds by itself. The optimizer holds nothing for them.
    """
    trained = trained_parameters(model)
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if name not in trained}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shape of each tensor."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def trained_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of the `trained_parameters`, of what is split over ranks that of the whole."""
    trained = trained_parameters(model)
    return {name: shape for name, shape in whole_shapes(model).items() if name in trained}


def _sends(split: SplitParameter) -> bool:
    """Whether this rank's part goes into a checkpoint: of replicas it is that of the first."""
    return split.layer.replicas is None or dist.get_rank(split.layer.replicas) == 0


def _in_pieces(own: Tensor, split: SplitParameter) -> Pieces:
    """Return the whole of which `own` is this rank's part."""
    own = own.detach()
    return Pieces(split.whole_shape, own.dtype, partial(gather_pieces, own, split), held=own)
