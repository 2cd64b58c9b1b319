"""The capsule network of the paper (figures 1 and 2), and its losses."""

from __future__ import annotations

from functools import partial
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from capsdist.models.capsule_network import CapsuleNetwork, ClassKeywords, Output
from capsdist.models.layers import Conv2d, Padding, PrimaryCapsules, truncated_normal_
from capsdist.ops import margin_loss, reconstruction_loss
from capsdist.ops.losses import MarginReduction
from capsdist.routing.common.checks import check_flag, one_of

Initialisation = Literal["default", "truncated_normal"]
AbsentScaling = Literal["none", "classes"]


class CapsNet(CapsuleNetwork):
    """Convolution, primary capsules, class capsules and, if wanted, a decoder (paper, section 4).

    The defaults are the paper's MNIST network: 8,215,568 parameters, 6,804,224 of them without decoder.

    `initialisation`: ``"default"`` is PyTorch's own for convolutions and decoder and `ClassCapsules`' for
    its weights; ``"truncated_normal"`` is the authors' code: standard deviation 0.05 for the first
    convolution, 0.1 for all other weights, all biases 0.1; log priors, which it has not, 0. Biases of class
    capsules (`capsule_bias`), which the paper has not, start at 0.1 in both. `initialise` draws it anew.

    `primary_coupling` is the authors' code too: primary capsules squash conv / types + bias, with
    `none_of_the_above` conv / (types + 1) + bias, see `PrimaryCapsules`; in the paper conv + bias. Their
    initialisation goes with it: without the factor all capsules start near length 1, where squash is flat.

    `options` are `ClassKeywords`. Class capsules that `class_layer` makes keep their own initialisation.

    `num_labels`: classes of an image, 2 for MultiMNIST (section 6). `decoder_separate`: the decoder draws
    each of them by itself, from its capsule alone, as there.

    Shapes: as `CapsuleNetwork`.
    Raises: ShapeError as `CapsuleNetwork`, or if image_shape is too small for the kernels, or a layer refuses
    its size or option; ValueError if `padding` or `initialisation` is unknown.

    Example:
        >>> import torch
        >>> network = CapsNet(image_shape=(3, 32, 32), num_classes=5, primary_types=4)
        >>> network(torch.rand(2, 3, 32, 32)).scores.shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
        *,
        conv_channels: int = 256,
        conv_kernel: int = 9,
        primary_types: int = 32,
        primary_dim: int = 8,
        primary_kernel: int = 9,
        primary_stride: int = 2,
        primary_coupling: bool = False,
        padding: Padding = "valid",
        initialisation: Initialisation = "default",
        num_labels: int = 1,
        **options: Unpack[ClassKeywords],
    ) -> None:
        super().__init__(image_shape, num_classes, num_labels)
        if initialisation not in get_args(Initialisation):
            raise ValueError(
                f"initialisation={initialisation!r} is unknown; choose {one_of(get_args(Initialisation))}"
            )
        if options.get("class_layer") is not None and initialisation == "truncated_normal":
            raise ValueError("initialisation='truncated_normal' is for ClassCapsules; leave class_layer out")
        check_flag("primary_coupling", primary_coupling)
        self.initialisation: Initialisation = initialisation
        channels, height, width = image_shape
        self.conv = Conv2d(channels, conv_channels, conv_kernel, padding=padding)
        # the softmax of one iteration over the types, from logits of zero
        choices = primary_types + options.get("none_of_the_above", False)
        coupling = 1 / choices if primary_coupling else None
        primary = PrimaryCapsules(
            conv_channels, primary_types, primary_dim, primary_kernel, primary_stride, padding, coupling
        )
        sides = self.conv.output_side(height), self.conv.output_side(width)
        self.add_capsules(primary, sides, **{"decoder": True, **options})
        self._own_class_capsules = options.get("class_layer") is None
        self._initialise_as_official()

    def initialise(self) -> None:
        """Draw all parameters anew, after `to_empty` say: with the seed it was built with, the same again.

        Split over ranks (`parallelize`), it wants equal seeds on all: each draws the class capsules of every
        rank in turn and keeps its own.
        """
        self.draw_parameters()
        self._initialise_as_official()

    def features(self, images: Tensor) -> Tensor:
        """Return the features of the first convolution."""
        return functional.relu(self.conv(images), inplace=True)

    def _initialise_as_official(self) -> None:
        """Set biases of class capsules, which the paper has not, and all the others if that is wanted."""
        if self.initialisation != "truncated_normal":
            bias = getattr(self.class_capsules, "bias", None)
            if self._own_class_capsules and bias is not None:
                nn.init.constant_(bias, 0.1)
            return
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.constant_(parameter, 0.1)
            elif name == "class_capsules.packed_weights":
                self.class_capsules.draw_weights(partial(truncated_normal_, sd=0.1))
            elif not name.endswith("log_priors"):
                truncated_normal_(parameter, 0.05 if name == "conv.weight" else 0.1)


def capsnet_losses(
    output: Output,
    images: Tensor,
    labels: Tensor,
    *,
    m_plus: float,
    m_minus: float,
    absent_weight: float,
    margin_reduction: MarginReduction,
    reconstruction_weight: float,
    absent_scaling: AbsentScaling = "none",
) -> dict[str, Tensor]:
    """Return named losses per image, [B] each: margin loss, reconstruction loss, and `loss`, their sum.

    Args:
        output: of a `CapsNet`.
        images: what the decoder has to draw: [B, C, H, W] as the network saw them; or, where it draws each
            label by itself, the images of the labels alone, [B, K, C, H, W]. Their errors are added up.
        labels: targets as `margin_loss` takes them: [B] int64, [B, K] int64 or [B, J] floating.
        m_plus, m_minus, absent_weight, margin_reduction: see `margin_loss` (paper, section 3).
        reconstruction_weight: weight of the reconstruction loss (section 4.1) in the sum.
        absent_scaling: ``"classes"`` multiplies `absent_weight` by 9 / (J - 1): the sum over the J - 1
            absent classes then weighs what that over 9 does in the paper, whatever J is. Without it a
            network of 200 classes learns first to make all capsules short.

    Raises:
        ShapeError: as `margin_loss` and `reconstruction_loss`.
    """
    if absent_scaling == "classes":
        absent_weight *= 9 / (output.scores.shape[1] - 1)
    margin = margin_loss(
        output.scores,
        labels,
        m_plus=m_plus,
        m_minus=m_minus,
        absent_weight=absent_weight,
        reduction=margin_reduction,
    )
    if output.reconstructions is None:
        return {"loss": margin, "margin_loss": margin, "reconstruction_loss": torch.zeros_like(margin)}
    reconstruction = reconstruction_loss(output.reconstructions, images)
    # Also with weight 0: DDP and ZeRO expect a gradient of every parameter in every step.
    total = margin + reconstruction_weight * reconstruction
    return {"loss": total, "margin_loss": margin, "reconstruction_loss": reconstruction}
