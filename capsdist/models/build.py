"""Build a network from a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from capsdist.config.models import find_family

if TYPE_CHECKING:  # only for the signature
    from capsdist.config.models import NetworkConfig
    from capsdist.config.sections import Section

__all__ = ["build_model"]


def build_model(model: NetworkConfig, routing: Section) -> nn.Module:
    """Return the network that `model` and `routing` describe, in training mode.

    The configuration must be valid (`capsdist.config.validate`). Weights are drawn from torch's global
    generator, so seed it first.

    Example:
        >>> from capsdist.config import get_preset
        >>> config = get_preset("mnist_paper")
        >>> sum(parameter.numel() for parameter in build_model(config.model, config.routing).parameters())
        8215568
    """
    return find_family(model.kind).build(model, routing)
