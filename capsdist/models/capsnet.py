"""The capsule network of the paper (figures 1 and 2), and what every network of this package returns."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree

from capsdist.errors import ShapeError
from capsdist.models.decoder import Decoder
from capsdist.models.layers import (
    ClassCapsules,
    Conv2d,
    Padding,
    PrimaryCapsules,
    check_images,
    check_sizes,
    truncated_normal_,
)
from capsdist.ops import lengths, margin_loss, reconstruction_loss
from capsdist.ops.checks import check_tensor
from capsdist.ops.losses import MarginReduction
from capsdist.ops.predictions import largest
from capsdist.routing import RoutingKeywords
from capsdist.routing.common.checks import check_flag, one_of

Initialisation = Literal["default", "truncated_normal"]
AbsentScaling = Literal["none", "classes"]


class Output(NamedTuple):
    """What a network says of B images.

    scores [B, J]: the class capsules' lengths, in [0, 1); of a network without capsules its class logits.
    parent_poses [B, J, E], or None without capsules. reconstructions [B, C, H, W], or None without decoder.
    The largest score is the predicted class; of images with n labels each the n largest are.
    """

    scores: Tensor
    parent_poses: Tensor | None = None
    reconstructions: Tensor | None = None


# An exported network can be saved then; torch has no public name for it.
_pytree._register_namedtuple(Output, serialized_type_name="capsdist.models.Output")


class CapsNet(nn.Module):
    """Convolution, primary capsules, class capsules and, if wanted, a decoder (paper, section 4).

    The defaults are the paper's MNIST network: 8,215,568 parameters, 6,804,224 of them without decoder.

    `initialisation`: ``"default"`` is PyTorch's own for convolutions and decoder and `ClassCapsules`' for
    its weights; ``"truncated_normal"`` is the authors' code: standard deviation 0.05 for the first
    convolution, 0.1 for all other weights, all biases 0.1; log priors, which it has not, 0. `initialise`
    draws it anew.

    `primary_coupling` is the authors' code too: primary capsules squash conv / types + bias, with
    `none_of_the_above` conv / (types + 1) + bias, see `PrimaryCapsules`; in the paper conv + bias. Their
    initialisation goes with it: without the factor all capsules start near length 1, where squash is flat.

    `iterations` and `options` are those of `route`.

    `num_labels`: classes of an image, 2 for MultiMNIST (section 6).

    Shapes: images [B, C, H, W] float, labels or None -> `Output`. The decoder sees the capsules of the labels
    where they are given (training), else the `num_labels` longest. Labels are those of `Decoder`, int64 [B],
    int64 [B, K] or bool [B, J], or targets, floating [B, J]: then the capsules of all classes above 0 pass.
    Raises: ShapeError if images are not [B, *image_shape], image_shape is too small for the kernels,
    num_labels is not from 1 to J - 1, or a layer refuses its size or option; ValueError if `padding` or
    `initialisation` is unknown.

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
        class_dim: int = 16,
        iterations: int = 3,
        capsule_bias: bool = False,
        log_priors: bool = False,
        decoder: bool = True,
        decoder_hidden: tuple[int, int] = (512, 1024),
        initialisation: Initialisation = "default",
        num_labels: int = 1,
        **options: Unpack[RoutingKeywords],
    ) -> None:
        super().__init__()
        if initialisation not in get_args(Initialisation):
            raise ValueError(
                f"initialisation={initialisation!r} is unknown; choose {one_of(get_args(Initialisation))}"
            )
        check_flag("decoder", decoder)
        check_flag("primary_coupling", primary_coupling)
        check_num_labels(num_labels, num_classes)
        self.num_labels = num_labels
        self.initialisation: Initialisation = initialisation
        channels, height, width = image_shape
        self.image_shape = channels, height, width
        self.conv = Conv2d(channels, conv_channels, conv_kernel, padding=padding)
        # the softmax of one iteration over the types, from logits of zero
        choices = primary_types + options.get("none_of_the_above", False)
        coupling = 1 / choices if primary_coupling else None
        self.primary_capsules = PrimaryCapsules(
            conv_channels, primary_types, primary_dim, primary_kernel, primary_stride, padding, coupling
        )
        sides = self.conv.output_side(height), self.conv.output_side(width)
        if min(*sides, *map(self.primary_capsules.conv.output_side, sides)) < 1:
            raise ShapeError(
                f"image_shape={image_shape} is too small for kernels {conv_kernel} and {primary_kernel}; "
                "use smaller kernels or padding='same'"
            )
        self.class_capsules = ClassCapsules(
            self.primary_capsules.num_capsules(*sides),
            primary_dim,
            num_classes,
            class_dim,
            iterations=iterations,
            bias=capsule_bias,
            log_priors=log_priors,
            **options,
        )
        self.decoder = Decoder(num_classes, class_dim, self.image_shape, decoder_hidden) if decoder else None
        if initialisation == "truncated_normal":
            self._initialise_as_official()

    def initialise(self) -> None:
        """Draw all parameters anew, after `to_empty` say: with the seed it was built with, the same again.

        Split over ranks (`parallelize`), it wants equal seeds on all: each draws the class capsules of every
        rank in turn and keeps its own.
        """
        reset_parameters(self)
        if self.initialisation == "truncated_normal":
            self._initialise_as_official()

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        """Return scores, class capsules and reconstructions of `images` [B, C, H, W]."""
        check_images(images, self.image_shape)
        if labels is not None:
            check_tensor("labels", labels)
        features = functional.relu(self.conv(images), inplace=True)
        parent_poses = self.class_capsules(self.primary_capsules(features))
        return read_out(parent_poses, labels, self.decoder, self.num_labels)

    def _initialise_as_official(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.constant_(parameter, 0.1)
            elif name == "class_capsules.packed_weights":
                self.class_capsules.draw_weights(partial(truncated_normal_, sd=0.1))
            elif not name.endswith("log_priors"):
                truncated_normal_(parameter, 0.05 if name == "conv.weight" else 0.1)


def reset_parameters(network: nn.Module) -> None:
    """Draw all parameters anew by the layers' own functions, in the order in which they were built."""
    for module in network.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def check_num_labels(num_labels: int, num_classes: int) -> None:
    """Raise ShapeError unless `num_labels` is from 1 to num_classes - 1."""
    check_sizes(num_labels=num_labels)
    if 1 < num_labels >= num_classes:
        raise ShapeError(f"num_labels={num_labels} must be below num_classes={num_classes}")


def read_out(parent_poses: Tensor, labels: Tensor | None, decoder: Decoder | None, num_labels: int) -> Output:
    """Return what class capsules [B, J, E] say; labels, num_labels: which of them the decoder sees."""
    scores = lengths(parent_poses)
    if decoder is None:
        return Output(scores, parent_poses)
    if labels is None:
        longest = largest(scores.detach(), num_labels)
        seen = longest[:, 0] if num_labels == 1 else longest
    else:
        seen = labels > 0 if labels.is_floating_point() and labels.dim() == 2 else labels
    return Output(scores, parent_poses, decoder(parent_poses, seen))


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
        images: [B, C, H, W] as the network saw them, and so what the decoder has to draw.
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
