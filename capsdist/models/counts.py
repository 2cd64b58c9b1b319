"""Count parameters and outputs of a network from its configuration, on torch's meta device.

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

__all__ = ["num_parameters", "output_numbers", "weight_shapes"]


def num_parameters(config: Config) -> int:
    """Return the number of trainable parameters of the network."""
    return sum(parameter.numel() for parameter in _on_meta(config).parameters() if parameter.requires_grad)


def output_numbers(config: Config) -> int:
    """Return how many numbers all layers with trained parameters give for one image.

    That is the least that the backward pass keeps, of families without a function `cost`.
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
    return numbers


def weight_shapes(config: Config) -> dict[str, torch.Size]:
    """Return the shapes of the network's parameters and persistent buffers by name."""
    return {name: tensor.shape for name, tensor in _on_meta(config).state_dict().items()}


def _on_meta(config: Config) -> nn.Module:
    with torch.device("meta"):
        return build_model(config.model, config.routing)
