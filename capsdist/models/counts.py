"""Count parameters and bytes of a network from its configuration, on torch's meta device.

So a configuration can be priced before a machine is asked for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from capsdist.config import Config, image_shape
from capsdist.models.build import build_model

__all__ = [
    "FP32_BYTES",
    "num_parameters",
    "output_bytes",
    "training_state_bytes",
    "weight_shapes",
]

FP32_BYTES = 4


def num_parameters(config: Config) -> int:
    """Return the number of trainable parameters of the network."""
    return sum(parameter.numel() for parameter in _on_meta(config).parameters() if parameter.requires_grad)


def training_state_bytes(config: Config, *, zero_stage: int = 0, num_ranks: int = 1) -> int:
    """Return the bytes that weights, gradients and the optimizer's state take on one rank, all in fp32.

    The state is Adam's two moments or the momentum of sgd, and the average of the weights where there is one.
    Of frozen parameters there are only weights.

    ZeRO (Rajbhandari et al. 2020, figure 1) divides over `num_ranks` ranks: from stage 1 the state,
    from stage 2 also gradients, from stage 3 also weights. Rounded up; without its working buffers.
    """
    optim = config.optim
    state = int(optim.momentum > 0) if optim.kind == "sgd" else 2
    state += optim.average_decay > 0
    divided = {0: 0, 1: state, 2: state + 1, 3: state + 2}[zero_stage]
    parameters = list(_on_meta(config).parameters())
    size, frozen = (
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad == trained) * FP32_BYTES
        for trained in (True, False)
    )
    whole, shared = size * (state + 2 - divided), size * divided
    whole, shared = (whole, shared + frozen) if zero_stage == 3 else (whole + frozen, shared)
    return whole + -(-shared // num_ranks)


def output_bytes(config: Config) -> int:
    """Return the bytes of the outputs of all layers with parameters, for one image in fp32.

    That is the least that the backward pass keeps; of layers whose parameters are frozen it keeps nothing.
    """
    numbers = 0

    def add(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal numbers
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        numbers += sum(math.prod(tensor.shape) for tensor in tensors)

    network = _on_meta(config).eval()
    for module in network.modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            module.register_forward_hook(add)
    with torch.no_grad():
        network(torch.empty(1, *image_shape(config.model), device="meta"))
    return numbers * FP32_BYTES


def weight_shapes(config: Config) -> dict[str, torch.Size]:
    """Return the shapes of the network's parameters and persistent buffers by name."""
    return {name: tensor.shape for name, tensor in _on_meta(config).state_dict().items()}


def _on_meta(config: Config) -> nn.Module:
    with torch.device("meta"):
        return build_model(config.model, config.routing)
