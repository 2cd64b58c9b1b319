"""An optimizer's step whose numbers are tensors on the device, not floats of Python.

A CUDA graph keeps the floats of the step that was captured; what a tensor holds is read at each replay.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.adam import adam

if TYPE_CHECKING:  # a machine with torch alone runs steps
    from capsdist.config.schema import Optim

__all__ = ["step_from", "step_numbers"]

_FAR = 1e30  # a number of steps after which both bias corrections of Adam are 1, and which adding 1 leaves


def step_numbers(
    adam_step: int, optim: Optim, learning_rate: float, average_share: float
) -> tuple[float, float, float]:
    """Return what `step_from` takes in Adam's step number `adam_step`, the first is 1: (rate, decay, share).

    rate: the factor of the update, with TensorFlow's epsilon lr sqrt(1 - beta2^t) / (1 - beta1^t), else lr;
    decay: the factor of adamw's weight decay, lr; share: see `capsdist.train.averages`.
    """
    rate = learning_rate
    if optim.epsilon_placement == "tensorflow":
        rate *= math.sqrt(1 - optim.beta2**adam_step) / (1 - optim.beta1**adam_step)
    return rate, learning_rate, average_share


def step_from(optimizer: torch.optim.Optimizer, optim: Optim, numbers: Tensor) -> None:
    """Do a step of `optimizer`, one of `build_optimizer` that has all its state, by `step_numbers`.

    numbers: [3] on the device of the weights, fp32, as fused kernels read them on a GPU; on a CPU fp64, with
    which the step is that of floats to the bit (with TensorFlow's epsilon to rounding).
    """
    rate, decay, share = numbers.unbind()
    captured = numbers.is_cuda and torch.cuda.is_current_stream_capturing()
    for group in optimizer.param_groups:
        group["lr"], group["average_share"] = rate, share
        if "eps" in group:
            group["eps"], group["capturable"] = optim.epsilon, captured
    if optim.epsilon_placement == "pytorch":
        optimizer.step()
        return
    for group in optimizer.param_groups:
        _tensorflow_step(optimizer, group, rate, decay)


@torch.no_grad()
def _tensorflow_step(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], rate: Tensor, decay: Tensor
) -> None:
    """Step the parameters of `group` by w -= rate m / (sqrt(v) + epsilon), decayed by adamw before.

    PyTorch's kernel divides epsilon by nothing where its bias corrections are 1: they are part of `rate`.
    """
    weights = [weight for weight in group["params"] if weight.grad is not None]
    if not weights:
        return
    held = [optimizer.state[weight] for weight in weights]
    if group["weight_decay"]:
        factor = (1 - decay * group["weight_decay"]).to(weights[0].dtype)
        torch._foreach_mul_(weights, factor)  # pyright: ignore[reportPrivateImportUsage]
    far = torch.full((), _FAR, device=weights[0].device)
    adam(
        weights,
        [weight.grad for weight in weights],
        [slots["exp_avg"] for slots in held],
        [slots["exp_avg_sq"] for slots in held],
        [],
        [far] * len(weights),
        fused=True,
        capturable=group["capturable"],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=rate,
        weight_decay=0.0,
        eps=group["eps"],
        maximize=False,
    )
    steps = [slots["step"] for slots in held]
    torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
