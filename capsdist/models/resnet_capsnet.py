"""Capsules over a residual network, or over any network that turns images into a map of features."""

from __future__ import annotations

from typing import Unpack

from torch import nn

from capsdist.models.capsule_network import ClassKeywords
from capsdist.models.layers import Padding, PrimaryCapsules
from capsdist.models.stem_network import CHILD_LENGTH, StemNetwork

__all__ = ["ResNetCapsNet"]


class ResNetCapsNet(StemNetwork):
    """A stem, primary capsules, class capsules and, if wanted, a decoder.

    `stem`, `stem_frozen` and `norm_groups` are those of `StemNetwork.add_stem`.

    Initialisation: the primary convolution is drawn so that capsules have length 1 before squash, so about
    0.5 after it, and the class capsules' weights so that their totals start at `initial_total`.

    `options` are `ClassKeywords`, without a decoder by default; `num_labels` is that of `CapsNet`.

    Shapes: as `CapsuleNetwork`.
    Raises: ShapeError as `CapsuleNetwork`, or if the features are not [B, C', H', W'] floats or too small for
    the kernel, or a layer refuses its size or option.

    Example:
        >>> import torch
        >>> from capsdist.models.resnet import ResNetStem
        >>> network = ResNetCapsNet((3, 20, 33), 5, stem=ResNetStem(3, (8, 16), (1, 1)), primary_types=4)
        >>> network(torch.rand(2, 3, 20, 33)).scores.shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int = 10,
        *,
        stem: nn.Module | None = None,
        stem_frozen: bool = False,
        norm_groups: int = 8,
        primary_types: int = 32,
        primary_dim: int = 8,
        primary_kernel: int = 3,
        primary_stride: int = 2,
        padding: Padding = "same",
        num_labels: int = 1,
        **options: Unpack[ClassKeywords],
    ) -> None:
        super().__init__(image_shape, num_classes, num_labels)
        features, height, width = self.add_stem(stem, frozen=stem_frozen, norm_groups=norm_groups)
        primary = PrimaryCapsules(
            features, primary_types, primary_dim, primary_kernel, primary_stride, padding
        )
        self.add_capsules(primary, (height, width), **options)
        self.initialise_capsules()
        self.train()

    def initialise_capsules(self) -> None:
        """Draw the weights under capsules."""
        self.initialise_primary(self.primary_capsules)
        self.initialise_classes(CHILD_LENGTH)
