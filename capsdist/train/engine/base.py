"""The interface of engines, as the loop uses it. README.md in this folder describes it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from capsdist.models import Output
from capsdist.train.precision import Precision
from capsdist.train.state import EngineState

__all__ = ["Engine"]


class Engine(Protocol):
    """Runs a network over the ranks: forward, backward, optimizer step, and its whole state in and out.

    Every rank calls every method in the same order with tensors of the same shapes. Weights, gradients and
    optimizer state are fp32 (float64 if the network is); `precision` is that of the forward pass.
    """

    name: str
    model: nn.Module
    rank: int
    world_size: int
    device: torch.device
    precision: Precision

    def microbatch(self, *, last: bool) -> AbstractContextManager[None]:
        """Enclose forward and backward of a microbatch; gradients cross ranks in the `last` of a step."""
        ...

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        """Run the network under the engine's precision. Outside a microbatch: for evaluation."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`; `step` takes their MEAN over ranks of the SUM over microbatches."""
        ...

    def step(self, learning_rate: float, average_share: float = 0.0) -> Tensor:
        """Clip, update the weights, clear the gradients; return the gradients' norm before clipping (scalar).

        average_share: of the new weights in their moving average, where `optim.average_decay` asks for one.

        The norm is left on the device, so that no step waits for it. fp16 skips a step whose gradients
        overflow.
        """
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Enclose an evaluation: the network holds the averages of its weights, if there are any. Collective.

        The trained weights come back to the bit. After an error inside, the engine can only be closed.
        """
        ...

    def state(self) -> EngineState:
        """Return the whole state, whose tensors rank 0 reads while others send them; memory is shared.

        It holds until the next step or load. See `EngineState.read`, `EngineState.send`.
        """
        ...

    def load(self, state: EngineState) -> None:
        """Take over `state`, whichever engine and number of ranks saved it. Collective.

        Every rank has it, and reads what it needs of it.

        Raises:
            CheckpointError: names or shapes differ from this network's, or its files have changed.
        """
        ...

    def close(self) -> None:
        """Let go of what the engine holds beyond the network."""
        ...
