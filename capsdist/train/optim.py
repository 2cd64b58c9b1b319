"""Optimizers by `optim.kind`, and the state that they keep: one definition, used by every engine.

Source of the default: paper, section 4 (Adam with TensorFlow's defaults). TensorFlow adds epsilon before it
corrects the bias of the second moment (Kingma and Ba 2015, section 2: "epsilon hat"), PyTorch after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # a machine with torch alone runs steps
    from capsdist.config.schema import Optim

__all__ = [
    "KINDS", "OptimizerKind", "StateForm", "build_optimizer", "create_state", "epsilon_at", "set_step",
    "trained_parameters",
]  # fmt: skip

_NORMALISATION = (nn.LayerNorm, nn.RMSNorm)  # the others have weights of one dimension


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer of torch.

    build: takes parameter groups and `optim`. slots: of a parameter's state, shaped like it, as torch names
    them, for `optim`. counts_steps: whether the state has the scalar `step` too.
    """

    build: Callable[[list[dict[str, Any]], Optim], torch.optim.Optimizer]
    slots: Callable[[Optim], tuple[str, ...]]
    counts_steps: bool


def _adam(groups: list[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optim.kind]
    betas = (optim.beta1, optim.beta2)
    return kind(groups, lr=optim.learning_rate, betas=betas, eps=optim.epsilon, fused=True)


def _sgd(groups: list[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    options = {"momentum": optim.momentum, "nesterov": optim.nesterov}
    return torch.optim.SGD(groups, lr=optim.learning_rate, fused=True, **options)


def _moments(optim: Optim) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq")


def _momentum(optim: Optim) -> tuple[str, ...]:
    return ("momentum_buffer",) if optim.momentum else ()


KINDS: Mapping[str, OptimizerKind] = {
    "adam": OptimizerKind(_adam, _moments, counts_steps=True),
    "adamw": OptimizerKind(_adam, _moments, counts_steps=True),
    "sgd": OptimizerKind(_sgd, _momentum, counts_steps=False),
}
"""By the names of `optim.kind`."""


@dataclass(frozen=True)
class StateForm:
    """What the optimizer's state of a parameter holds.

    slots: names of tensors shaped like the parameter; `average` is the moving average of the parameter
    itself. counts_steps: whether there is the scalar `step`.
    """

    slots: tuple[str, ...]
    counts_steps: bool

    @classmethod
    def of(cls, optim: Optim) -> StateForm:
        """Return the form of the state of `optim`."""
        kind = KINDS[optim.kind]
        average = ("average",) if optim.average_decay else ()
        return cls((*kind.slots(optim), *average), kind.counts_steps)

    @property
    def averages(self) -> bool:
        """Whether there is a moving average of the weights."""
        return "average" in self.slots


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that the optimizer changes, by name: all but frozen ones."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def build_optimizer(
    network: nn.Module, optim: Optim, parameters: Mapping[str, nn.Parameter] | None = None
) -> torch.optim.Optimizer:
    """Return torch's fused optimizer of `optim.kind` over `parameters`: `trained_parameters` of `network`.

    Without weight decay they are one group. With it there are two: `optim.weight_decay` is that of parameters
    of two or more dimensions that are neither biases (their names end in "bias") nor of normalisation layers.

    Fused: one pass over memory instead of about eight, and on a GPU no wait for the loss scaler.
    """
    trained = trained_parameters(network) if parameters is None else parameters
    groups = [{"params": list(trained.values()), "weight_decay": 0.0}]
    if optim.weight_decay:
        decayed = set(_decayed(network))
        whole = groups[0]["params"]
        groups = [
            {"params": [p for p in whole if p in decayed], "weight_decay": optim.weight_decay},
            {"params": [p for p in whole if p not in decayed], "weight_decay": 0.0},
        ]
    return KINDS[optim.kind].build([group for group in groups if group["params"]], optim)


def _decayed(network: nn.Module) -> Iterator[nn.Parameter]:
    for module in network.modules():
        if not isinstance(module, _NORMALISATION):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() > 1 and not name.endswith("bias"):
                    yield parameter


def create_state(optimizer: torch.optim.Optimizer, parameter: Tensor, form: StateForm) -> dict[str, Any]:
    """Give `optimizer` the state that it has of `parameter` before the first step, and return it."""
    held: dict[str, Any] = {slot: torch.zeros_like(parameter, requires_grad=False) for slot in form.slots}
    if form.averages:
        held["average"].copy_(parameter.detach())
    if form.counts_steps:
        held["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
    optimizer.state[parameter] = held
    return held


def epsilon_at(adam_step: int, optim: Optim) -> float:
    """Return the epsilon that PyTorch's Adam needs in its step number `adam_step`, the first is 1.

    TensorFlow's update lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + epsilon) is PyTorch's with
    epsilon / sqrt(1 - beta2^t). Adam's own steps count: those that fp16 skips for overflow do not.

    Example:
        >>> epsilon_at(1, Optim(epsilon_placement="tensorflow"))
        3.162277660168371e-07
    """
    if optim.epsilon_placement == "pytorch":
        return optim.epsilon
    return optim.epsilon / math.sqrt(1 - optim.beta2**adam_step)


def set_step(
    optimizer: torch.optim.Optimizer, learning_rate: float, epsilon: float, average_share: float = 0.0
) -> None:
    """Set what the next step takes besides gradients, in the parameter groups; nothing else sets it.

    average_share: of the new weights in their average; see `capsdist.train.averages`.
    """
    for group in optimizer.param_groups:
        group["lr"], group["average_share"] = learning_rate, average_share
        if "eps" in group:
            group["eps"] = epsilon
