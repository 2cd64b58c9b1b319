"""Networks of capsules over a stem: any module that turns images into a map of features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from capsdist.errors import ShapeError
from capsdist.models.capsule_network import CapsuleNetwork
from capsdist.models.layers import PrimaryCapsules, initial_sd
from capsdist.models.resnet import ResNetStem
from capsdist.routing.common.checks import check_flag

__all__ = ["CHILD_LENGTH", "StemNetwork", "feature_shape", "initial_total"]

CHILD_LENGTH = 0.5
"""Length of primary capsules at the start: squash of vectors of length 1, where its slope is large."""


class StemNetwork(CapsuleNetwork):
    """Base class of networks of capsules over a stem.

    A subclass calls `add_stem`, builds its capsules, and calls `initialise_capsules` at its end.
    """

    def add_stem(
        self, stem: nn.Module | None, *, frozen: bool, norm_groups: int, own: bool = True
    ) -> tuple[int, int, int]:
        """Take a stem, and return (C', H', W') of the features that it makes of an image of zeros.

        stem: maps images [B, C, H, W] to features [B, C', H', W']; ``None`` is a `ResNetStem` of 64, 128 and
        256 channels. The features of a stem of another class are normalised by a GroupNorm of `norm_groups`
        groups (or the largest common divisor with C'), because their scale is not known.
        frozen: the stem does not learn: its parameters require no gradient, and it stays in evaluation mode.
        own: the stem is the user's, so that `initialise` is None: its weights may come from elsewhere.

        Raises:
            ShapeError: the features are not [B, C', H', W'] floats.
        """
        check_flag("stem_frozen", frozen)
        self.stem_frozen = frozen
        self.stem = ResNetStem(self.image_shape[0], norm_groups=norm_groups) if stem is None else stem
        if frozen:
            self.stem.requires_grad_(False)
        features, height, width = feature_shape(self.stem, self.image_shape)
        normalised = isinstance(self.stem, ResNetStem)
        self.stem_is_own = own and not normalised
        self.norm = nn.Identity() if normalised else nn.GroupNorm(math.gcd(norm_groups, features), features)
        return features, height, width

    @property
    def initialise(self) -> Callable[[], None] | None:
        """A function that draws all parameters anew, as `CapsNet.initialise`; None with a user's stem."""
        return None if self.stem_is_own else self._draw

    def _draw(self) -> None:
        self.draw_parameters()
        self.initialise_capsules()

    def initialise_capsules(self) -> None:
        """Draw the weights of all capsules, so that they start neither starved nor saturated."""
        raise NotImplementedError

    @torch.no_grad()
    def initialise_primary(self, primary: PrimaryCapsules) -> None:
        """Draw the primary convolution so that capsules have length 1 before squash, `CHILD_LENGTH` after."""
        conv = primary.conv
        # of the features that it sees: after a ReLU, or after GroupNorm
        mean_square = 0.5 if isinstance(self.stem, ResNetStem) else 1.0
        conv.weight.normal_(std=1 / math.sqrt(primary.dim * conv.weight[0].numel() * mean_square))
        assert conv.bias is not None
        conv.bias.zero_()

    def initialise_classes(self, child_length: float) -> None:
        """Draw the weights of class capsules, whose children start with this length, to `initial_total`.

        Those of another routing algorithm have drawn what suits them.
        """
        if self.has_own_classes:
            return
        layer = self.class_capsules
        sizes = layer.num_parents, layer.parent_dim
        sd = initial_sd(layer.num_children, *sizes, total=initial_total(*sizes) / child_length)
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
