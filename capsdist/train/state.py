"""The state of an engine, and what its tensors must be: names, shapes, finite numbers, fit values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from capsdist.errors import CheckpointError
from capsdist.models.parallel.pieces import PIECE

__all__ = [
    "FILE_TYPES", "EngineState", "Pieces", "Stored", "check_tensors", "copy_into", "first_not_finite",
    "first_unfit", "in_memory", "in_order", "pieces_of",
]  # fmt: skip


@dataclass(frozen=True)
class Pieces:
    """A tensor of a state that is not in memory as a whole: it lies in a file, or on several ranks.

    pieces: called for its numbers in order, flat tensors on the CPU. Of an engine that is collective: all
    ranks exhaust it, and only rank 0 gets pieces. held: what this rank holds of the tensor, of an engine.
    """

    shape: torch.Size
    dtype: torch.dtype
    pieces: Callable[[], Iterator[Tensor]]
    held: Tensor | None = None


FILE_TYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bool: "BOOL",
}  # fmt: skip
"""What files of tensors hold, in their order, and how they name it; whole numbers are those of buffers."""

Stored = Tensor | Pieces
"""A tensor of a state, in memory or not."""


@dataclass(frozen=True)
class EngineState:
    """What an engine holds, in the one form that all engines share; on rank 0, see `Pieces`.

    model: every parameter (fp32 master weights, or their averages) and persistent buffer by its name in the
        network.
    optimizer: `<parameter>/<slot>`: of Adam `exp_avg` and `exp_avg_sq` shaped like the parameter, `step` a
        scalar; of sgd `momentum_buffer`; `trained`, the master weight, where `model` has its average.
    loss_scale: of fp16 (`scale`, `growth_tracker`), else empty.
    """

    model: Mapping[str, Stored]
    optimizer: Mapping[str, Stored]
    loss_scale: dict[str, float] = field(default_factory=dict)

    def read(self) -> EngineState:
        """Return it with copies of all tensors in memory; of an engine collective, and empty on other ranks.

        Raises:
            CheckpointError: the file that holds them has changed.
        """
        model, optimizer = (_read(tensors) for tensors in (self.model, self.optimizer))
        return EngineState(model, optimizer, self.loss_scale)

    def send(self) -> None:
        """Take part, on another rank, when rank 0 reads or writes the state of an engine."""
        for tensors in (self.model, self.optimizer):
            for _, value in in_order(tensors):
                if isinstance(value, Pieces):
                    for _ in value.pieces():
                        pass


def pieces_of(value: Stored) -> Iterator[Tensor]:
    """Yield the numbers of `value` in order, flat, on the CPU; to be used at once, as memory is shared."""
    if isinstance(value, Pieces):
        yield from value.pieces()
    elif value.numel():
        for piece in value.detach().reshape(-1).split(PIECE):
            yield piece.cpu()


def in_order(tensors: Mapping[str, Stored]) -> list[tuple[str, Stored]]:
    """Return `tensors` in the order in which all ranks go through them: that of a file of safetensors."""
    places = {dtype: place for place, dtype in enumerate(FILE_TYPES)}
    return sorted(tensors.items(), key=lambda item: (places.get(item[1].dtype, len(places)), item[0]))


def in_memory(value: Stored) -> Tensor:
    """Return `value` as a contiguous tensor on the CPU that shares no memory with it."""
    whole = torch.empty(value.shape, dtype=value.dtype)
    copy_into(whole, value)
    return whole


@torch.no_grad()
def copy_into(target: Tensor, value: Stored) -> int:
    """Copy `value`, shaped like `target`, a piece at a time; return how many numbers there were."""
    if not target.is_contiguous():  # whatever its layout
        target.copy_(in_memory(value))
        return target.numel()
    flat, filled = target.view(-1), 0
    for piece in pieces_of(value):
        flat[filled : filled + len(piece)] = piece
        filled += len(piece)
    return filled


def check_tensors(tensors: Mapping[str, Stored], expected: Mapping[str, torch.Size]) -> None:
    """Check that a state holds exactly the `expected` names and shapes.

    Raises:
        CheckpointError: naming the first tensor that is missing, left over, or of another shape.
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"checkpoint lacks {name!r}; resume with the configuration that wrote it")
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"checkpoint has {name!r} of shape {list(tensors[name].shape)}, the network "
                f"{list(shape)}; resume with the configuration that wrote it"
            )
    if unknown := next((name for name in tensors if name not in expected), None):
        raise CheckpointError(
            f"checkpoint has {unknown!r}, the network has no such tensor; "
            "resume with the configuration that wrote it"
        )


def first_not_finite(tensors: Mapping[str, Stored]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, None if all numbers are finite."""
    for name, tensor in tensors.items():
        if tensor.dtype.is_floating_point:
            for piece in pieces_of(tensor):
                low, high = torch.aminmax(piece)  # both are NaN if any value is
                if not (math.isfinite(low) and math.isfinite(high)):
                    return name
    return None


def first_unfit(slots: Mapping[str, Stored]) -> str | None:
    """Return the name of the first slot that holds what Adam never leaves, None if there is none."""
    for name, tensor in slots.items():
        kind = name.rpartition("/")[2]
        if kind == "step":
            step = in_memory(tensor)
            if not (step.numel() == 1 and step >= 0 and float(step).is_integer()):
                return name
        if kind == "exp_avg_sq" and not all(piece.min() >= 0 for piece in pieces_of(tensor)):  # NaN too
            return name
    return None


def _read(tensors: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Return copies of `tensors`; those that only rank 0 gets are left out on others."""
    found = {}
    for name, value in in_order(tensors):
        whole = torch.empty(value.shape, dtype=value.dtype)
        if copy_into(whole, value) == whole.numel():
            found[name] = whole
    return found
