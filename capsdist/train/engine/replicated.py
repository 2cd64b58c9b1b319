"""State of an engine whose every rank holds all of it: copied out, checked, taken over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from capsdist.errors import CheckpointError
from capsdist.train.optim import SLOTS
from capsdist.train.state import EngineState, check_tensors, first_unfit

__all__ = [
    "check_state", "copy_to_cpu", "fixed_tensors", "load_replicated", "one_step_count", "replicated_state",
    "shapes_of", "trained_parameters",
]  # fmt: skip


def replicated_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return copies of the weights and of Adam's state by parameter name; zeros before the first step."""
    trained = trained_parameters(model)
    weights = {name: copy_to_cpu(tensor) for name, tensor in (trained | fixed_tensors(model)).items()}
    slots: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        held = optimizer.state.get(parameter, {})
        for slot in SLOTS:
            slots[f"{name}/{slot}"] = copy_to_cpu(held[slot] if held else torch.zeros_like(parameter))
        slots[f"{name}/step"] = copy_to_cpu(held["step"]) if held else torch.zeros(())
    return weights, slots


@torch.no_grad()
def load_replicated(state: EngineState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Copy `state` into the network and its optimizer.

    Raises:
        CheckpointError: as `check_state`.
    """
    parameters, fixed = trained_parameters(model), fixed_tensors(model)
    check_state(state, shapes_of(parameters), shapes_of(fixed))
    for name, tensor in (parameters | fixed).items():
        tensor.copy_(state.model[name])
    for name, parameter in parameters.items():
        held = {slot: torch.empty_like(parameter).copy_(state.optimizer[f"{name}/{slot}"]) for slot in SLOTS}
        # copied, like the rest: the state belongs to the caller, whose tensors may be memory-mapped
        step = state.optimizer[f"{name}/step"].to(parameter.device, copy=True)
        optimizer.state[parameter] = {"step": step, **held}


def check_state(
    state: EngineState, parameters: Mapping[str, torch.Size], fixed: Mapping[str, torch.Size]
) -> None:
    """Check that `state` belongs to a network with these `trained_parameters` and `fixed_tensors`.

    Raises:
        CheckpointError: naming the first tensor that is missing, left over, of another shape, or in Adam's
            state with values that Adam cannot have: a number of steps below 0, for example.
    """
    check_tensors(state.model, {**parameters, **fixed})
    slots = {f"{name}/{slot}": shape for name, shape in parameters.items() for slot in SLOTS}
    check_tensors(state.optimizer, slots | {f"{name}/step": torch.Size([]) for name in parameters})
    if (found := first_unfit(state.optimizer)) is not None:
        raise CheckpointError(
            f"checkpoint holds {found!r} with values that Adam cannot have; resume from an older checkpoint"
        )


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


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that the optimizer changes, by name: all but frozen ones."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


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
