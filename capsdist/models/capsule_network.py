"""What networks of capsules share: everything above a map of features, and what they return."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Unpack

from torch import Tensor, nn
from torch.utils import _pytree

from capsdist.errors import ShapeError
from capsdist.models.decoder import Decoder
from capsdist.models.layers import ClassCapsules, PrimaryCapsules, check_images, check_sizes
from capsdist.ops import lengths
from capsdist.ops.checks import check_tensor
from capsdist.ops.predictions import largest
from capsdist.routing import RoutingKeywords
from capsdist.routing.common.checks import check_flag

__all__ = ["CapsuleNetwork", "ClassKeywords", "ClassLayer", "Output"]

ClassLayer = Callable[[int, int, int, int], Any]
"""Makes class capsules of I children, D, J parents and E: a module [B, I, D] -> [B, J, E]."""


class ClassKeywords(RoutingKeywords, total=False):
    """What networks take for class capsules and decoder, as keyword arguments.

    class_dim (default 16): E. iterations (3) and the options of `route`, capsule_bias and log_priors (off):
    those of `ClassCapsules`. class_layer: makes other class capsules, which none of these are given. decoder,
    decoder_hidden (512, 1024), decoder_separate (off): whether there is one, its hidden units, and whether it
    draws each label by itself.
    """

    class_dim: int
    iterations: int
    capsule_bias: bool
    log_priors: bool
    decoder: bool
    decoder_hidden: tuple[int, int]
    decoder_separate: bool
    class_layer: ClassLayer | None


class Output(NamedTuple):
    """What a network says of B images.

    scores [B, J]: the class capsules' lengths, or of matrix capsules their activations, in [0, 1]; of a
    network without capsules its class logits.
    parent_poses [B, J, E], or None without capsules. reconstructions [B, C, H, W], or None without decoder;
    [B, K, C, H, W] where the decoder draws each of K labels by itself. The largest score is the predicted
    class; of images with n labels each the n largest are. A family that does not classify says what its
    scores and poses are.
    """

    scores: Tensor
    parent_poses: Tensor | None = None
    reconstructions: Tensor | None = None


# An exported network can be saved then; torch has no public name for it.
_pytree._register_namedtuple(Output, serialized_type_name="capsdist.models.Output")


class CapsuleNetwork(nn.Module):
    """Base class of networks with primary capsules, class capsules and, if wanted, a decoder.

    A subclass builds the layers that make features, calls `add_capsules`, and defines `features`.

    Shapes: images [B, C, H, W] float, labels or None -> `Output`. The decoder sees the capsules of the labels
    where they are given (training), else the `num_labels` longest, the longest first: together, or with
    `decoder_separate` each by itself (paper, section 6). Labels are those of `Decoder`, int64 [B],
    int64 [B, K] or bool [B, J], or targets, floating [B, J]: then the capsules of all classes above 0 pass.
    Raises: ShapeError if images are not [B, *image_shape], or num_labels is not from 1 to J - 1.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, num_labels: int) -> None:
        super().__init__()
        check_sizes(num_labels=num_labels)
        if 1 < num_labels >= num_classes:
            raise ShapeError(f"num_labels={num_labels} must be below num_classes={num_classes}")
        channels, height, width = image_shape
        self.image_shape = channels, height, width
        self.num_classes, self.num_labels = num_classes, num_labels

    def add_capsules(
        self,
        primary: PrimaryCapsules,
        sides: tuple[int, int],
        **options: Unpack[ClassKeywords],
    ) -> None:
        """Build class capsules and decoder above `primary`, which sees features of `sides` (H', W').

        Raises:
            ShapeError: the features are smaller than the kernel of `primary`, or a layer refuses its size.
        """
        self.primary_capsules = primary
        self.check_sides(*sides)
        self.add_classes(primary.num_capsules(*sides), primary.dim, **options)

    def add_classes(
        self,
        num_children: int,
        child_dim: int,
        *,
        class_dim: int = 16,
        iterations: int = 3,
        capsule_bias: bool = False,
        log_priors: bool = False,
        decoder: bool = False,
        decoder_hidden: tuple[int, int] = (512, 1024),
        decoder_separate: bool = False,
        class_layer: ClassLayer | None = None,
        **options: Unpack[RoutingKeywords],
    ) -> None:
        """Build class capsules of `num_children`, and the decoder; `ClassKeywords` says what the options are.

        Raises:
            ShapeError: a layer refuses its size or option.
        """
        self.has_own_classes = class_layer is not None
        if class_layer is None:
            learned = {"bias": capsule_bias, "log_priors": log_priors}
            class_layer = partial(ClassCapsules, iterations=iterations, **learned, **options)
        self.class_capsules = class_layer(num_children, child_dim, self.num_classes, class_dim)
        check_flag("decoder", decoder)
        sizes = self.num_classes, class_dim, self.image_shape, decoder_hidden
        self.decoder = Decoder(*sizes, separate=decoder_separate) if decoder else None

    def check_sides(self, height: int, width: int) -> None:
        """Raise ShapeError where features of `height` x `width` are smaller than the primary kernel."""
        conv = self.primary_capsules.conv
        if min(map(conv.output_side, (height, width))) < 1:
            raise ShapeError(
                f"image_shape={self.image_shape} is too small: it gives features of "
                f"{max(height, 0)}x{max(width, 0)} for the kernel {conv.kernel_size[0]} of the "
                "primary capsules; use larger images, smaller kernels or padding='same'"
            )

    def features(self, images: Tensor) -> Tensor:
        """Return the features [B, C', H', W'] that primary capsules are made of."""
        raise NotImplementedError

    def child_poses(self, images: Tensor) -> Tensor:
        """Return the poses [B, I, D] of the children of class capsules."""
        return self.primary_capsules(self.features(images))

    def child_sides(self, height: int, width: int) -> tuple[int, ...]:
        """Return the rows and columns of positions of these children, for features of `height` x `width`."""
        side = self.primary_capsules.conv.output_side
        return side(height), side(width)

    def draw_parameters(self) -> None:
        """Draw all parameters anew by the layers' own functions, in the order in which they were built."""
        for module in self.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        """Return scores, class capsules and reconstructions of `images` [B, C, H, W]."""
        check_images(images, self.image_shape)
        if labels is not None:
            check_tensor("labels", labels)
        parent_poses = self.class_capsules(self.child_poses(images))
        scores = lengths(parent_poses)
        if self.decoder is None:
            return Output(scores, parent_poses)
        return Output(scores, parent_poses, self.decoder(parent_poses, self._seen(scores, labels)))

    def _seen(self, scores: Tensor, labels: Tensor | None) -> Tensor:
        """Return which capsules the decoder sees, as it takes labels."""
        if labels is None:
            longest = largest(scores.detach(), self.num_labels)
            return longest[:, 0] if self.num_labels == 1 else longest
        return labels > 0 if labels.is_floating_point() and labels.dim() == 2 else labels
