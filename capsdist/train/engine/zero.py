"""The ZeRO engine: DeepSpeed partitions optimizer state (stage 1), gradients (2) and weights (3) over ranks.

The only module that knows DeepSpeed, beside `operators`, which imports it when an engine is built. What it
does not leave to DeepSpeed: the autocast (inside the network, so that weights, gradients and their sums over
ranks stay fp32 as in the plain engine), the learning rate, the loss scale, and checkpoints. Source of the
API: DeepSpeed 0.19.8, whose partitions are read and written through `deepspeed.utils.safe_*` and the mappings
behind them.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capsdist.config.schema import Optim
from capsdist.models import Output
from capsdist.models.parallel.gradients import average_layers, gradient_norm
from capsdist.models.parallel.layer import layer_parameters
from capsdist.train.averages import as_stored, average_weights, exchange_averages
from capsdist.train.engine.allocator import return_large_blocks
from capsdist.train.engine.interfaces import on_loopback
from capsdist.train.engine.operators import import_deepspeed, load_operators
from capsdist.train.engine.replicated import (
    checked_state,
    fixed_tensors,
    load_parameters,
    one_step_count,
    replicated_state,
    shapes_of,
    trained_shapes,
)  # fmt: skip
from capsdist.train.engine.split import SplitCapsules
from capsdist.train.engine.zero_parts import Partitions, is_partitioned
from capsdist.train.engine.zero_settings import zero_settings
from capsdist.train.optim import (
    StateForm,
    build_optimizer,
    create_state,
    epsilon_at,
    set_step,
    trained_parameters,
)  # fmt: skip
from capsdist.train.precision import LossScale, Precision, autocast
from capsdist.train.state import EngineState, Stored, copy_into, in_memory

__all__ = ["ZeroEngine"]


class _Autocast(nn.Module):
    """A network that enters its own autocast: DeepSpeed switches off one that is entered around it."""

    def __init__(self, network: nn.Module, precision: Precision, device: torch.device) -> None:
        super().__init__()
        self.network, self.device = network, device
        self.precision: Precision = precision

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what DeepSpeed sees: not the class capsules that are split over ranks, which it would mix."""
        capsules = {id(parameter) for parameter in layer_parameters(self.network).values()}
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if id(parameter) not in capsules:
                yield name, parameter

    def forward(self, images: Tensor, labels: Tensor | None) -> Output:
        with autocast(self.precision, self.device):
            return self.network(images, labels)


class ZeroEngine:
    """DeepSpeed ZeRO, stage 0 to 3. See `Engine` for the contract.

    Joins an initialised process group; on one rank without one it makes its own. On the CPU DeepSpeed
    compiles a small extension at its first start: see `zero_requirements`.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: Optim,
        *,
        stage: int,
        rank: int,
        world_size: int,
        device: torch.device,
        precision: Precision,
        microbatch_size: int,
        gradient_accumulation_steps: int,
    ) -> None:
        self.name = f"zero-{stage}"
        self.model, self.stage = model.to(device), stage
        self.rank, self.world_size, self.device = rank, world_size, device
        self.precision: Precision = precision
        self._optim, self._form = optim, StateForm.of(optim)
        self._adam_steps = 0
        self._loss_scale = LossScale() if precision == "fp16" else None
        self._owns_group = not dist.is_initialized()
        self._parts = Partitions(stage, rank, device)
        # taken here: at stage 3 DeepSpeed leaves parameters empty
        self._shapes, self._fixed_shapes = trained_shapes(model), shapes_of(fixed_tensors(model))
        self._capsules = SplitCapsules(model, optim) if layer_parameters(model) else None
        names = self._capsules.parameters if self._capsules else {}
        self._others = {name: p for name, p in trained_parameters(model).items() if name not in names}
        num_parameters = sum(parameter.numel() for parameter in self._others.values())
        config = zero_settings(
            stage,
            num_parameters,
            max_grad_norm=optim.max_grad_norm,
            microbatch_size=microbatch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )
        if stage == 3 and device.type == "cpu":
            return_large_blocks()  # before whole weights make place for parts
        network = _Autocast(self.model, precision, device)
        optimizer = build_optimizer(self.model, optim, self._others)
        with on_loopback() if self._owns_group else contextlib.nullcontext():
            if self._owns_group:
                store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
                dist.init_process_group(_backend(device), store=store, rank=rank, world_size=world_size)
            self._engine = _initialise(network, optimizer, config, device)
        # A load may come before the first step, and the averages begin with these weights.
        for weight in self._held_weights():
            create_state(self._optimizer, weight, self._form)
        if stage in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        if stage and self._capsules:  # DeepSpeed finds the norm in the midst of its step, and clips by it
            found = self._engine.optimizer.scaled_global_norm
            self._engine.optimizer.scaled_global_norm = partial(self._capsules.whole_norm, found)

    @contextmanager
    def microbatch(self, *, last: bool) -> Iterator[None]:
        """Enclose forward and backward of one microbatch; the `last` one ends the accumulation."""
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        """Run the network on `images` [B, C, H, W]; collective at stage 3, which gathers weights for it."""
        return self._engine(images, labels)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` (scalar)."""
        if self._loss_scale and self.stage:
            self._engine.optimizer.override_loss_scale(self._loss_scale.scale)
        elif self._loss_scale:
            loss = loss * self._loss_scale.scale
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float, average_share: float = 0.0) -> Tensor:
        """Clip, update, average and clear; return the gradients' norm before clipping."""
        epsilon = epsilon_at(self._adam_steps + 1, self._optim)
        set_step(self._optimizer, learning_rate, epsilon, average_share)
        if self._capsules:
            set_step(self._capsules.optimizer, learning_rate, epsilon, average_share)
            average_layers(self.model)
        norm = self._step_parts() if self.stage else self._step_whole()
        if self._form.averages:
            average_weights(self._optimizer, self._held_weights())
            if self._capsules:
                average_weights(self._capsules.optimizer, self._capsules.parameters.values())
        return norm

    def _step_parts(self) -> Tensor:
        """Do the step of a stage that partitions: DeepSpeed clips and updates."""
        self._engine.step()
        overflow = bool(self._engine.optimizer.overflow)
        self._adam_steps += not overflow
        if self._loss_scale:
            self._loss_scale.update(overflow=overflow)
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self.device)
        if self._capsules:
            self._capsules.step(norm if self._optim.max_grad_norm else None, skip=overflow)
        return norm

    def _step_whole(self) -> Tensor:
        """Do the step of stage 0, whose gradients are whole: loss scale and clipping are done here."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self._loss_scale:
            for gradient in gradients:
                gradient /= self._loss_scale.scale
        norm = gradient_norm(self.model) if self._capsules else torch.nn.utils.get_total_norm(gradients)
        if self._loss_scale:
            overflow = not bool(norm.isfinite())
            self._loss_scale.update(overflow=overflow)
            if overflow:
                self._engine.zero_grad()
                return norm
        if (limit := self._optim.max_grad_norm) > 0:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, norm)
        self._engine.step()
        if self._capsules:
            self._capsules.step(None, skip=False)
        self._adam_steps += 1
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the network hold the averages of its weights, if there are any; collective."""
        self._exchange()
        yield
        self._exchange()  # not after an error, which other ranks may not have had

    def _exchange(self) -> None:
        if not self._form.averages:
            return
        if self.stage == 3:
            # Whole weights of the last forward pass; the engine's call of this name collects garbage too.
            self._engine.optimizer.empty_partition_cache()
        exchange_averages(self._optimizer, self._held_weights())
        if self._capsules:
            exchange_averages(self._capsules.optimizer, self._capsules.parameters.values())
        if self.stage in (1, 2):
            self._engine.optimizer.update_lp_params()
        elif self.stage == 3:
            for number in range(len(self._held_weights())):
                self._engine.optimizer._reassign_or_swap_out_partitioned_parameters(number)

    def state(self) -> EngineState:
        """Return the whole state; what ranks hold a part of is gathered when rank 0 reads it."""
        rank, form, optimizer = self.rank, self._form, self._optimizer
        if not self.stage:
            weights, slots = replicated_state(self.model, optimizer, form, rank=rank, parameters=self._others)
        else:
            weights: dict[str, Stored] = {n: self._parts.pieces(p) for n, p in self._others.items()}
            slots: dict[str, Stored] = {
                f"{name}/{slot}": self._parts.pieces(p, slot)
                for name, p in self._others.items()
                for slot in form.slots
            }
            if form.counts_steps and not rank:
                step = optimizer.state[self._held_weights()[0]]["step"]
                slots |= {f"{name}/step": step for name in self._others}
            as_stored(weights, slots)
        if self._capsules:
            own = self._capsules
            found = replicated_state(self.model, own.optimizer, form, rank=rank, parameters=own.parameters)
            weights, slots = weights | found[0], slots | found[1]
        fixed: dict[str, Stored] = {}
        for name, tensor in fixed_tensors(self.model).items():
            if is_partitioned(tensor):
                fixed[name] = self._parts.fixed(tensor, self._fixed_shapes[name])
            elif rank == 0:
                fixed[name] = tensor
        return EngineState(weights | fixed, slots, self._kept_scale())

    def _kept_scale(self) -> dict[str, float]:
        scale = self._loss_scale
        return {"scale": scale.scale, "growth_tracker": scale.growth_tracker} if scale else {}

    @torch.no_grad()
    def load(self, state: EngineState) -> None:
        """Take over `state`: every rank picks its partition out of the whole. Collective.

        Raises:
            CheckpointError: names or shapes differ, or the parameters have had different numbers of steps,
                which partitions of several parameters cannot hold.
        """
        if self._loss_scale and state.loss_scale:
            self._loss_scale = LossScale(state.loss_scale["scale"], int(state.loss_scale["growth_tracker"]))
        weights, slots = checked_state(state, self._shapes, self._fixed_shapes, self._form)
        if self._form.counts_steps and (self.stage or self._optim.epsilon_placement == "tensorflow"):
            who, remedy = f"ZeRO stage {self.stage}", "resume with --train.engine ddp"
            self._adam_steps = one_step_count(state, self._shapes, who, remedy)
        fixed: dict[str, Any] = fixed_tensors(self.model)
        for name, tensor in fixed.items():
            if is_partitioned(tensor):
                self._parts.fill(tensor, in_memory(weights[name]))
            else:
                copy_into(tensor, weights[name])
        if own := self._capsules:
            load_parameters(weights, slots, self.model, own.optimizer, self._form, own.parameters)
        if not self.stage:
            load_parameters(weights, slots, self.model, self._optimizer, self._form, self._others)
            return
        for name, parameter in self._others.items():
            self._parts.scatter(parameter, in_memory(weights[name]))
            for slot in self._form.slots:
                self._parts.scatter(parameter, in_memory(slots[f"{name}/{slot}"]), slot)
        if self._form.counts_steps:
            for weight in self._held_weights():
                self._optimizer.state[weight]["step"].fill_(self._adam_steps)
        if self.stage < 3:
            self._engine.optimizer.update_lp_params()  # from the fp32 partitions to the network's weights

    def close(self) -> None:
        """Release DeepSpeed's hooks, and the process group if it was made here."""
        self._engine.destroy()
        if self._owns_group:
            dist.destroy_process_group()

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        """Torch's optimizer, which DeepSpeed wraps from stage 1 on."""
        return self._engine.optimizer.optimizer if self.stage else self._engine.optimizer

    def _held_weights(self) -> list[Tensor]:
        """What the optimizer of this rank updates: parameters, from stage 1 on flat fp32 parts of them."""
        optimizer = self._engine.optimizer
        if not self.stage:
            return list(self._others.values())
        if self.stage == 3:
            return optimizer.fp32_partitioned_groups_flat
        return optimizer.single_partition_of_fp32_groups


def _initialise(
    network: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], device: torch.device
) -> Any:
    """Return `deepspeed.initialize`'s engine, silently."""
    deepspeed = import_deepspeed(device)
    if device.type == "cpu":
        load_operators()
    # It calls collectives by names that torch 2.13 calls deprecated, twice a step.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has built its extension
        args = SimpleNamespace(device_rank=device.index or 0)
        return deepspeed.initialize(args=args, model=network, optimizer=optimizer, config=config)[0]


def _backend(device: torch.device) -> str:
    return "gloo" if device.type == "cpu" else "nccl"
