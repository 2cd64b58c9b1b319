"""The built-in families of networks: how to build them, and their losses.

A new family is one `capsdist.config.Family`, here or in any module that `model.kind` names. torch is imported
when a network is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from capsdist.algorithms import find_algorithm
from capsdist.config.capsnet_rules import capsnet_problems
from capsdist.config.conv_capsnet import ConvCapsNetConfig, ConvRouting, conv_capsnet_problems
from capsdist.config.em_capsnet import (
    EMCapsNetConfig,
    EMRouting,
    SpreadLoss,
    em_capsnet_problems,
    spread_loss_at,
)
from capsdist.config.models import (
    BaselineCNNConfig,
    CapsNetConfig,
    CapsuleConfig,
    Family,
    Loss,
    NetworkConfig,
    NoOptions,
    PoolingCNNConfig,
    Routing,
)
from capsdist.config.resnet_capsnet import ResNetCapsNetConfig, resnet_capsnet_problems
from capsdist.config.shapes import image_shape
from capsdist.config.transforming_autoencoder import (
    TransformingAutoencoderConfig,
    transforming_autoencoder_problems,
)
from capsdist.models.algorithms import DYNAMIC
from capsdist.models.conv_costs import conv_capsnet_cost
from capsdist.models.em_costs import em_capsnet_cost
from capsdist.models.network_costs import baseline_cost, capsnet_cost, pooling_cnn_cost, transforming_cost
from capsdist.models.resnet_costs import resnet_capsnet_cost

if TYPE_CHECKING:
    from torch import Tensor, nn

    from capsdist.models.capsule_network import Output

__all__ = [
    "BASELINE_CNN", "CAPSNET", "CONV_CAPSNET", "EM_CAPSNET", "POOLING_CNN", "RESNET_CAPSNET",
    "TRANSFORMING_AUTOENCODER",
]  # fmt: skip


def _options(model: CapsuleConfig, routing: Routing) -> dict[str, Any]:
    """Return what a network of capsules is built with, besides shape and classes of images."""
    own = model.model_dump(exclude=NetworkConfig.model_fields.keys() - {"num_labels"})
    algorithm = find_algorithm(routing.algorithm)
    if algorithm.layer is not None:
        return own | {"class_layer": algorithm.layer(model, routing)}
    return own | _dynamic_options(routing)


def _dynamic_options(routing: Routing) -> dict[str, Any]:
    """Return the options of dynamic routing."""
    return routing.model_dump(include={*find_algorithm("dynamic").reads, "competition"})  # the last of grids


def _build_capsnet(model: CapsNetConfig, routing: Routing) -> nn.Module:
    from capsdist.models.capsnet import CapsNet

    return CapsNet(image_shape(model), model.num_classes, **_options(model, routing))


def _capsnet_losses(output: Output, images: Tensor, labels: Tensor, loss: Loss) -> dict[str, Tensor]:
    from capsdist.models.capsnet import capsnet_losses

    return capsnet_losses(output, images, labels, **dict(loss))


def _stem_of(model: ResNetCapsNetConfig) -> nn.Module:
    """Return the stem of a network: `resnet`, or that of the user."""
    from capsdist.models.own_stem import own_stem
    from capsdist.models.resnet import ResNetStem

    if model.stem != "resnet":
        return own_stem(model)
    channels, blocks = model.stem_channels, model.stem_blocks
    return ResNetStem(model.in_channels, channels, blocks, model.stem_first, model.norm_groups)


def _stem_options(model: ResNetCapsNetConfig, routing: Routing) -> dict[str, Any]:
    """Return `_options` without those of the stem."""
    own = ("stem", "stem_channels", "stem_blocks", "stem_first")
    return {name: value for name, value in _options(model, routing).items() if name not in own}


def _build_resnet_capsnet(model: ResNetCapsNetConfig, routing: Routing) -> nn.Module:
    from capsdist.models.resnet_capsnet import ResNetCapsNet

    options = _stem_options(model, routing)
    return ResNetCapsNet(image_shape(model), model.num_classes, stem=_stem_of(model), **options)


def _build_conv_capsnet(model: ConvCapsNetConfig, routing: ConvRouting) -> nn.Module:
    from capsdist.models.conv_capsnet import ConvCapsNet, PaperStem

    options = _stem_options(model, routing) | _dynamic_options(routing)  # of the layers below the classes
    channels, kernel, stride = map(options.pop, ("conv_channels", "conv_kernel", "conv_stride"))
    if model.stem == "paper":
        stem = PaperStem(model.in_channels, channels, kernel, stride, model.padding)
    else:
        stem = _stem_of(model)
    return ConvCapsNet(image_shape(model), model.num_classes, stem=stem, **options)


def _plain(network: str) -> Callable[[Any, Any], nn.Module]:
    """Return what builds a network, module:CLASS, of all options of its sections `model` and `routing`."""

    def build(model: NetworkConfig, routing: Any) -> nn.Module:
        module, name = network.split(":")
        options = model.model_dump(exclude=set(NetworkConfig.model_fields)) | routing.model_dump()
        make = getattr(import_module(f"capsdist.models.{module}"), name)
        return make(image_shape(model), model.num_classes, **options)

    return build


def _spread_losses(output: Output, images: Tensor, labels: Tensor, loss: SpreadLoss) -> dict[str, Tensor]:
    from capsdist.ops import spread_loss

    return {"loss": spread_loss(output.scores, labels, margin=loss.margin_end)}


def _build_transforming(model: TransformingAutoencoderConfig, routing: NoOptions) -> nn.Module:
    from capsdist.models.transforming_autoencoder import TransformingAutoencoder

    options = model.model_dump(exclude={*NetworkConfig.model_fields, "max_shift"})
    return TransformingAutoencoder(image_shape(model), **options)


def _shift_losses(output: Output, shifted: Tensor, labels: Tensor, loss: NoOptions) -> dict[str, Tensor]:
    from capsdist.models.transforming_autoencoder import shift_losses

    return shift_losses(output, shifted)


def _cross_entropy(output: Output, images: Tensor, labels: Tensor, loss: NoOptions) -> dict[str, Tensor]:
    import torch
    from torch.nn import functional

    from capsdist.ops.targets import check_probabilities

    scores = output.scores.to(torch.promote_types(output.scores.dtype, torch.float32))
    if labels.dim() > 1:
        check_probabilities("labels", labels, scores.shape[1])
        labels = labels.to(scores.dtype)
    return {"loss": functional.cross_entropy(scores, labels, reduction="none")}


def _sigmoid_cross_entropy(
    output: Output, images: Tensor, labels: Tensor, loss: NoOptions
) -> dict[str, Tensor]:
    """Return the sum over classes: each is present or not by itself (paper, section 6, MultiMNIST)."""
    import torch
    from torch.nn import functional

    from capsdist.ops import multi_hot

    scores = output.scores.to(torch.promote_types(output.scores.dtype, torch.float32))
    targets = multi_hot(labels, scores.shape[1], scores.dtype)
    terms = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return {"loss": terms.sum(1)}


CAPSNET = Family(
    title="capsule network",
    model=CapsNetConfig,
    routing=Routing,
    loss=Loss,
    build=_build_capsnet,
    losses=_capsnet_losses,
    loss_names=("loss", "margin_loss", "reconstruction_loss"),
    problems=capsnet_problems,
    multi_label_losses=_capsnet_losses,
    cost=capsnet_cost,
    source=DYNAMIC.source,
)
RESNET_CAPSNET = replace(
    CAPSNET,
    title="capsule network over a residual network",
    model=ResNetCapsNetConfig,
    build=_build_resnet_capsnet,
    problems=resnet_capsnet_problems,
    cost=resnet_capsnet_cost,
)
CONV_CAPSNET = replace(
    CAPSNET,
    title="network of convolutional capsules",
    model=ConvCapsNetConfig,
    routing=ConvRouting,
    build=_build_conv_capsnet,
    problems=conv_capsnet_problems,
    cost=conv_capsnet_cost,
    has_blocks=True,
)
EM_CAPSNET = Family(
    title="matrix capsules with EM routing",
    model=EMCapsNetConfig,
    routing=EMRouting,
    loss=SpreadLoss,
    build=_plain("em_capsnet:EMCapsNet"),
    losses=_spread_losses,
    loss_at=spread_loss_at,
    problems=em_capsnet_problems,
    cost=em_capsnet_cost,
    activations=True,
    source="Geoffrey E. Hinton, Sara Sabour, Nicholas Frosst: "
    "[Matrix capsules with EM routing](https://openreview.net/forum?id=HJWLfGWRb), 2018",
)
BASELINE_CNN = Family(
    title="baseline CNN",
    model=BaselineCNNConfig,
    build=_plain("baseline_cnn:BaselineCNN"),
    losses=_cross_entropy,
    multi_label_losses=_sigmoid_cross_entropy,
    cost=baseline_cost,
)
TRANSFORMING_AUTOENCODER = Family(
    title="transforming auto-encoder",
    model=TransformingAutoencoderConfig,
    build=_build_transforming,
    losses=_shift_losses,
    classifies=False,
    problems=transforming_autoencoder_problems,
    cost=transforming_cost,
    source="Geoffrey E. Hinton, Alex Krizhevsky, Sida D. Wang: "
    "[Transforming Auto-encoders](https://www.cs.toronto.edu/~hinton/absps/transauto6.pdf), 2011",
)
POOLING_CNN = replace(
    BASELINE_CNN,
    title="CNN with pooling",
    model=PoolingCNNConfig,
    build=_plain("pooling_cnn:PoolingCNN"),
    cost=pooling_cnn_cost,
)
