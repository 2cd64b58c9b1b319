"""Capsules over a residual network, or over any network that turns images into a map of features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self, Unpack

import torch
from torch import Tensor, nn

from capsdist.errors import ShapeError
from capsdist.models.capsule_network import CapsuleNetwork, ClassLayer
from capsdist.models.layers import Padding, PrimaryCapsules, initial_sd
from capsdist.models.resnet import ResNetStem
from capsdist.routing import RoutingKeywords
from capsdist.routing.common.checks import check_flag

CHILD_LENGTH = 0.5
"""Length of primary capsules at the start: squash of vectors of length 1, where its slope is large."""


class ResNetCapsNet(CapsuleNetwork):
    """A stem, primary capsules, class capsules and, if wanted, a decoder.

    `stem`: any module that maps images [B, C, H, W] to features [B, C', H', W']; C', H' and W' are taken
    from one run on an image of zeros. ``None`` is a `ResNetStem` of 64, 128 and 256 channels. The features
    of a stem of another class are normalised by a GroupNorm of `norm_groups` groups (or the largest common
    divisor with C'), because their scale is not known.

    `stem_frozen`: the stem does not learn: its parameters require no gradient, and it stays in evaluation
    mode.

    Initialisation: the primary convolution is drawn so that capsules have length 1 before squash, so about
    0.5 after it, and the class capsules' weights so that their totals start at `initial_total`.

    `iterations` and `options` are those of `route`, `class_layer`, `num_labels` and the decoder those of
    `CapsNet`.

    Shapes: as `CapsuleNetwork`.
    Raises: ShapeError as `CapsuleNetwork`, or if the features are not [B, C', H', W'] floats or too small for
    the kernel, or a layer refuses its size or option.

    Example:
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
        class_dim: int = 16,
        iterations: int = 3,
        capsule_bias: bool = False,
        log_priors: bool = False,
        decoder: bool = False,
        decoder_hidden: tuple[int, int] = (512, 1024),
        decoder_separate: bool = False,
        num_labels: int = 1,
        class_layer: ClassLayer | None = None,
        **options: Unpack[RoutingKeywords],
    ) -> None:
        super().__init__(image_shape, num_classes, num_labels)
        check_flag("stem_frozen", stem_frozen)
        self.stem_frozen = stem_frozen
        self.stem = ResNetStem(image_shape[0], norm_groups=norm_groups) if stem is None else stem
        if stem_frozen:
            self.stem.requires_grad_(False)
        features, height, width = feature_shape(self.stem, self.image_shape)
        own = isinstance(self.stem, ResNetStem)
        self.norm = nn.Identity() if own else nn.GroupNorm(math.gcd(norm_groups, features), features)
        primary = PrimaryCapsules(
            features, primary_types, primary_dim, primary_kernel, primary_stride, padding
        )
        self.add_capsules(
            primary,
            (height, width),
            class_dim=class_dim,
            iterations=iterations,
            capsule_bias=capsule_bias,
            log_priors=log_priors,
            decoder=decoder,
            decoder_hidden=decoder_hidden,
            decoder_separate=decoder_separate,
            class_layer=class_layer,
            **options,
        )
        self._initialise_capsules()
        self.train()

    @property
    def initialise(self) -> Callable[[], None] | None:
        """A function that draws all parameters anew, as `CapsNet.initialise`.

        None with a stem of another class, whose weights may come from elsewhere.
        """
        return self._draw if isinstance(self.stem, ResNetStem) else None

    def _draw(self) -> None:
        self.draw_parameters()
        self._initialise_capsules()

    @torch.no_grad()
    def _initialise_capsules(self) -> None:
        """Draw the weights under capsules."""
        conv, layer = self.primary_capsules.conv, self.class_capsules
        # of the features that the primary convolution sees: after a ReLU, or after GroupNorm
        mean_square = 0.5 if isinstance(self.stem, ResNetStem) else 1.0
        fan_in = conv.weight[0].numel()
        conv.weight.normal_(std=1 / math.sqrt(self.primary_capsules.dim * fan_in * mean_square))
        assert conv.bias is not None
        conv.bias.zero_()
        if self.has_own_classes:
            return  # they have drawn what suits them
        sizes = layer.num_parents, layer.parent_dim
        sd = initial_sd(layer.num_children, *sizes, total=initial_total(*sizes) / CHILD_LENGTH)
        layer.draw_weights(lambda weights: weights.normal_(std=sd))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of training; a frozen stem stays in that of evaluation."""
        super().train(mode)
        if self.stem_frozen:
            self.stem.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return the features of the stem, normalised."""
        return self.norm(self.stem(images))


def initial_total(num_parents: int, parent_dim: int) -> float:
    """Return the length t that totals of class capsules start with, before agreement changes the coupling.

    0.4 as in `ClassCapsules`, less with many classes. Totals of random votes are sums of I votes over J, so
    the votes grow with J, and with them the agreement: the first iteration adds about t^4 J / E to a total of
    t (J classes of E dimensions; squash of t is t^2, and the votes' second moment is t^2 J / E in each
    direction). That is kept at 0.1 at most, or else many capsules start near length 1.
    """
    return min(0.4, (0.1 * parent_dim / num_parents) ** 0.25)


@torch.no_grad()
def feature_shape(stem: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return (C', H', W') of what `stem` makes of images [B, *image_shape]: of one run on zeros.

    The run is in evaluation mode, so it changes no buffers and draws no random numbers.

    Raises:
        ShapeError: it does not return floats [1, C', H', W'].
    """
    first = next(stem.parameters(), None)
    images = torch.zeros(1, *image_shape, device=None if first is None else first.device)
    modes = [(module, module.training) for module in stem.modules()]
    features = stem.eval()(images)
    for module, training in modes:
        module.training = training
    if not isinstance(features, Tensor) or features.dim() != 4 or not features.is_floating_point():
        found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ShapeError(
            f"the stem returns {found} for images {list(images.shape)}; give one that returns features "
            "[B, C', H', W'] in float"
        )
    channels, height, width = features.shape[1:]
    return channels, height, width
