"""From a configuration to a network: the only module that both reads configurations and builds layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from capsdist.models.baseline_cnn import BaselineCNN
from capsdist.models.capsnet import CapsNet

if TYPE_CHECKING:  # only for the signature: networks and layers need torch alone, no pydantic
    from capsdist.config.schema import Model, Routing


def build_model(model: Model, routing: Routing) -> nn.Module:
    """Return the network that `model` and `routing` describe, in training mode.

    The configuration must be valid (`capsdist.config.validate`). Weights are drawn from torch's global
    generator, so seed it first.

    Example:
        >>> from capsdist.config import get_preset
        >>> config = get_preset("mnist_paper")
        >>> sum(parameter.numel() for parameter in build_model(config.model, config.routing).parameters())
        8215568
    """
    image_shape = (model.in_channels, model.image_size, model.image_size)
    if model.kind == "baseline_cnn":
        return BaselineCNN(image_shape, model.num_classes, dropout=model.dropout)
    return CapsNet(
        image_shape,
        model.num_classes,
        conv_channels=model.conv_channels,
        conv_kernel=model.conv_kernel,
        primary_types=model.primary_types,
        primary_dim=model.primary_dim,
        primary_kernel=model.primary_kernel,
        primary_stride=model.primary_stride,
        primary_coupling=model.primary_coupling,
        padding=model.padding,
        class_dim=model.class_dim,
        iterations=routing.iterations,
        none_of_the_above=routing.none_of_the_above,
        capsule_bias=model.capsule_bias,
        log_priors=model.log_priors,
        decoder=model.decoder,
        decoder_hidden=model.decoder_hidden,
        initialisation=model.initialisation,
        gradient=routing.gradient,
        recompute=routing.recompute,
        form=routing.form,
    )
