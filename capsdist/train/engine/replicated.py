"""State of an engine whose every rank holds all of it: copied out, checked, taken over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from capsdist.errors import CheckpointError
from capsdist.train.averages import as_held, as_stored
from capsdist.train.optim import StateForm, create_state, trained_parameters
from capsdist.train.state import EngineState, check_tensors, first_unfit

__all__ = [
    "checked_state", "copy_to_cpu", "fixed_tensors", "load_replicated", "one_step_count", "replicated_state",
    "shapes_of",
]  # fmt: skip


def replicated_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, form: StateForm
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return copies of the weights and of the optimizer's state by parameter name, as `EngineState` has them.

    form: that of the optimizer's state, which holds every trained parameter.
    """
    trained = trained_parameters(model)
    weights = {name: copy_to_cpu(tensor) for name, tensor in (trained | fixed_tensors(model)).items()}
    slots: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        held = optimizer.state[parameter]
        for slot in (*form.slots, "step") if form.counts_steps else form.slots:
            slots[f"{name}/{slot}"] = copy_to_cpu(held[slot])
    as_stored(weights, slots)
    return weights, slots


@torch.no_grad()
def load_replicated(
    state: EngineState, model: nn.Module, optimizer: torch.optim.Optimizer, form: StateForm
) -> None:
    """Copy `state` into the network and its optimizer.

    Raises:
        CheckpointError: as `checked_state`.
    """
    parameters, fixed = trained_parameters(model), fixed_tensors(model)
    weights, slots = checked_state(state, shapes_of(parameters), shapes_of(fixed), form)
    for name, tensor in (parameters | fixed).items():
        tensor.copy_(weights[name])
    for name, parameter in parameters.items():
        # copied, like the rest: the state belongs to the caller, whose tensors may be memory-mapped
        for slot, tensor in create_state(optimizer, parameter, form).items():
            tensor.copy_(slots[f"{name}/{slot}"])


def checked_state(
    state: EngineState,
    parameters: Mapping[str, torch.Size],
    fixed: Mapping[str, torch.Size],
    form: StateForm,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
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
    steps = {int(state.optimizer[f"{name}/step"]) for name in parameters}
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


def copy_to_cpu(tensor: Tensor) -> Tensor:
    """Return a contiguous copy of `tensor` on the CPU that shares no memory with it."""
    return tensor.detach().to("cpu", copy=True).contiguous()
