"""The built-in families of networks: how each is built, and what training minimises.

A new family is one `capsdist.config.Family`, here or in any module that `model.kind` names. torch is imported
when a network is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsdist.config.capsnet_rules import capsnet_problems
from capsdist.config.models import BaselineCNNConfig, CapsNetConfig, Family, Loss, NoOptions, Routing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from capsdist.models.capsnet import Output

__all__ = ["BASELINE_CNN", "CAPSNET"]


def _build_capsnet(model: CapsNetConfig, routing: Routing) -> nn.Module:
    from capsdist.models.capsnet import CapsNet

    return CapsNet(
        (model.in_channels, model.image_size, model.image_size),
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
        backend=routing.backend,
    )


def _capsnet_losses(output: Output, images: Tensor, labels: Tensor, loss: Loss) -> dict[str, Tensor]:
    """Return margin loss (paper, section 3), reconstruction loss (section 4.1, not weighted) and their sum.

    images [B, C, H, W] are what the network saw, and so what the decoder has to draw.
    """
    import torch

    from capsdist.ops import margin_loss, reconstruction_loss

    margin = margin_loss(
        output.scores,
        labels,
        m_plus=loss.m_plus,
        m_minus=loss.m_minus,
        absent_weight=loss.absent_weight,
        backend=loss.margin_reduction,
    )
    if output.reconstructions is None:
        return {"loss": margin, "margin_loss": margin, "reconstruction_loss": torch.zeros_like(margin)}
    reconstruction = reconstruction_loss(output.reconstructions, images)
    # Also with weight 0: DDP and ZeRO expect a gradient of every parameter in every step.
    total = margin + loss.reconstruction_weight * reconstruction
    return {"loss": total, "margin_loss": margin, "reconstruction_loss": reconstruction}


def _build_baseline(model: BaselineCNNConfig, routing: NoOptions) -> nn.Module:
    from capsdist.models.baseline_cnn import BaselineCNN

    image_shape = (model.in_channels, model.image_size, model.image_size)
    return BaselineCNN(image_shape, model.num_classes, dropout=model.dropout)


def _cross_entropy(output: Output, images: Tensor, labels: Tensor, loss: NoOptions) -> dict[str, Tensor]:
    import torch
    from torch.nn import functional

    scores = output.scores.to(torch.promote_types(output.scores.dtype, torch.float32))
    return {"loss": functional.cross_entropy(scores, labels, reduction="none")}


CAPSNET = Family(
    title="capsule network",
    model=CapsNetConfig,
    routing=Routing,
    loss=Loss,
    build=_build_capsnet,
    losses=_capsnet_losses,
    loss_names=("loss", "margin_loss", "reconstruction_loss"),
    problems=capsnet_problems,
)
BASELINE_CNN = Family(
    title="baseline CNN", model=BaselineCNNConfig, build=_build_baseline, losses=_cross_entropy
)
