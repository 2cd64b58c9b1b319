"""The plain engine: the network as it is on one rank, DistributedDataParallel on several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from capsdist.models import Output
from capsdist.models.parallel.conversion import share_values
from capsdist.models.parallel.gradients import average_layers, gradient_norm
from capsdist.models.parallel.layer import layer_parameters
from capsdist.train.averages import average_weights, exchange_averages
from capsdist.train.engine.replicated import load_replicated, one_step_count, replicated_state
from capsdist.train.optim import (
    StateForm,
    build_optimizer,
    create_state,
    epsilon_at,
    set_step,
    trained_parameters,
)  # fmt: skip
from capsdist.train.optim_tensors import step_from, step_numbers
from capsdist.train.precision import Precision, autocast
from capsdist.train.state import EngineState

if TYPE_CHECKING:  # a machine with torch alone runs steps
    from capsdist.config.schema import Optim

__all__ = ["PlainEngine"]


class PlainEngine:
    """One rank without a wrapper, several with DDP. See `Engine` for the contract.

    Every rank holds all weights and optimizer state (16 bytes a parameter with gradients) and averages
    gradients by one all-reduce a step. Several ranks need an initialised process group. DDP does not touch
    class capsules that are split over ranks, whose gradients are averaged over replicas at the step.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: Optim,
        *,
        rank: int,
        world_size: int,
        device: torch.device,
        precision: Precision,
    ) -> None:
        self.name = "ddp" if world_size > 1 else "plain"
        self.rank, self.world_size, self.device = rank, world_size, device
        self.precision: Precision = precision
        self.model = model.to(device)
        self._trained = trained_parameters(self.model)
        self.optimizer = build_optimizer(self.model, optim)
        self._optim, self._form = optim, StateForm.of(optim)
        self._adam_steps = 0  # counted here, because Adam's own count lies on the GPU
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")  # pyright: ignore[reportPrivateImportUsage]
        self._network: nn.Module = self.model
        self._capsules = layer_parameters(self.model)  # split over ranks, and so none of DDP's
        if self._capsules:
            share_values(self.model)
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, [*self._capsules])
        if world_size > 1:
            self._network = DistributedDataParallel(
                self.model,
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )
        for parameter in self._trained.values():  # now that all ranks have the weights of rank 0
            create_state(self.optimizer, parameter, self._form)

    @contextmanager
    def microbatch(self, *, last: bool) -> Iterator[None]:
        """Enclose forward and backward of one microbatch; only the `last` of a step sends gradients."""
        if last or not isinstance(self._network, DistributedDataParallel):
            yield
            return
        with self._network.no_sync():
            yield

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        """Run the network on `images` [B, C, H, W]."""
        # Without gradients DDP has nothing to add, and its forward would count as one of training.
        network = self._network if torch.is_grad_enabled() else self.model
        with autocast(self.precision, self.device):
            return network(images, labels)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` (scalar)."""
        self._scaler.scale(loss).backward()

    def step(self, learning_rate: float, average_share: float = 0.0) -> Tensor:
        """Clip, update, average and clear; return the gradients' norm before clipping."""
        epsilon = epsilon_at(self._adam_steps + 1, self._optim)
        set_step(self.optimizer, learning_rate, epsilon, average_share)
        self._scaler.unscale_(self.optimizer)
        norm = self._clip()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self._count_step()
        self._average_and_clear()
        return norm

    def next_numbers(self, learning_rate: float, average_share: float) -> tuple[float, float, float]:
        """Return what `step_from` takes in the next step, and count that step; not for fp16."""
        numbers = step_numbers(self._adam_steps + 1, self._optim, learning_rate, average_share)
        self._count_step()
        return numbers

    def step_from(self, numbers: Tensor) -> Tensor:
        """Do as `step` by `numbers` on the device: nothing of the host enters, so a CUDA graph may hold it.

        numbers: `next_numbers` as a tensor [3], fp32; on a CPU fp64.
        """
        norm = self._clip()
        step_from(self.optimizer, self._optim, numbers)
        self._average_and_clear()
        return norm

    def _clip(self) -> Tensor:
        norm = self._norm()
        if (limit := self._optim.max_grad_norm) > 0:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, norm)
        return norm

    def _average_and_clear(self) -> None:
        if self._form.averages:
            average_weights(self.optimizer, self._trained.values())
        self.clear_gradients()

    def clear_gradients(self) -> None:
        """Forget the gradients of a step that was not finished."""
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def use_channels_last(self) -> None:
        """Keep convolution weights, and the optimizer's state of them, with channels innermost in memory."""
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        for parameter in self._trained.values():
            held = self.optimizer.state[parameter]
            for slot in self._form.slots:  # fused optimizers want the layout of the parameter
                held[slot] = torch.empty_like(parameter).copy_(held[slot])

    def _norm(self) -> Tensor:
        """Return the norm of all gradients; average those of split capsules before."""
        if self._capsules:
            average_layers(self.model)
            return gradient_norm(self.model)
        return torch.nn.utils.get_total_norm(p.grad for p in self.model.parameters() if p.grad is not None)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the network hold the averages of its weights, if there are any, in this context."""
        if self._form.averages:
            exchange_averages(self.optimizer, self._trained.values())
        try:
            yield
        finally:
            if self._form.averages:
                exchange_averages(self.optimizer, self._trained.values())

    def _count_step(self) -> None:
        """Count Adam's steps where epsilon depends on them; Adam itself knows which ones fp16 has skipped."""
        if self._optim.epsilon_placement == "pytorch":
            return
        if self._scaler.is_enabled():
            self._adam_steps = int(next(iter(self.optimizer.state.values()))["step"])
        else:
            self._adam_steps += 1

    def state(self) -> EngineState:
        """Return the whole state on rank 0, which other ranks hold too, or a part of it."""
        scaler = self._scaler.state_dict()
        scale = {"scale": scaler["scale"], "growth_tracker": scaler["_growth_tracker"]} if scaler else {}
        return EngineState(*replicated_state(self.model, self.optimizer, self._form, rank=self.rank), scale)

    def load(self, state: EngineState) -> None:
        """Take over `state`.

        Raises:
            CheckpointError: names or shapes differ; or the parameters have had different numbers of
                steps, and epsilon depends on it.
        """
        load_replicated(state, self.model, self.optimizer, self._form)
        if self._optim.epsilon_placement == "tensorflow":
            who, remedy = "TensorFlow's Adam", "resume from another checkpoint"
            self._adam_steps = one_step_count(state, self._trained, who, remedy)
        if self._scaler.is_enabled() and state.loss_scale:
            saved = {
                "scale": state.loss_scale["scale"],
                "_growth_tracker": int(state.loss_scale["growth_tracker"]),
            }
            self._scaler.load_state_dict(self._scaler.state_dict() | saved)

    def close(self) -> None:
        """Nothing to let go of."""
