"""A small residual network without its classifier: the default stem of `ResNetCapsNet`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from capsdist.errors import ShapeError
from capsdist.models.layers import check_sizes
from capsdist.routing.common.checks import is_count, one_of

StemFirst = Literal["conv3", "conv7_pool"]


class ResidualBlock(nn.Module):
    """Pre-activation block: two 3x3 convolutions, each after GroupNorm and ReLU, added to the input.

    Source: He et al. 2016, "Identity Mappings in Deep Residual Networks", figure 4 (e). The last convolution
    starts at 0, so that the block starts as the identity and networks of any depth train.

    Shapes: [B, channels, H, W] -> the same.
    """

    def __init__(self, channels: int, norm_groups: int = 8) -> None:
        super().__init__()
        self.first = _activated_conv(channels, channels, norm_groups)
        self.second = _activated_conv(channels, channels, norm_groups, zero=True)

    def forward(self, features: Tensor) -> Tensor:
        """Return `features` [B, C, H, W] plus what the block has learned to add."""
        return features + self.second(self.first(features))


class ResNetStem(nn.Module):
    """Stages of residual blocks; from the second stage on, each begins with a convolution of stride 2.

    Normalises by GroupNorm (Wu and He 2018), which sees one image at a time: an image's features, and so
    its gradient, do not depend on the rest of its microbatch. BatchNorm's do. The output is normalised and
    passes a ReLU, so the mean square of its numbers starts at about one half.

    `first`: ``"conv3"``, a 3x3 convolution of stride 1, for small images (CIFAR); ``"conv7_pool"``, a 7x7
    convolution and a pooling of stride 2 each, for large ones (ImageNet).

    Shapes: images [B, in_channels, H, W] -> features [B, channels[-1], H', W']; a stride of 2 turns a side
    n into ceil(n / 2).
    Raises: ShapeError if there is no stage, `channels` and `blocks` differ in number, a size is no whole
    number of at least 1 (blocks: 0), or `norm_groups` does not divide all channels; ValueError if `first`
    is unknown.

    Example:
        >>> import torch
        >>> ResNetStem(3, channels=(8, 16), blocks=(1, 0))(torch.zeros(2, 3, 13, 32)).shape
        torch.Size([2, 16, 7, 16])
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (64, 128, 256),
        blocks: Sequence[int] = (2, 2, 2),
        first: StemFirst = "conv3",
        norm_groups: int = 8,
    ) -> None:
        super().__init__()
        _check_stages(channels, blocks, first)
        check_sizes(in_channels=in_channels, norm_groups=norm_groups)
        if unfit := [each for each in channels if each % norm_groups]:
            raise ShapeError(
                f"norm_groups={norm_groups} does not divide {unfit[0]} channels; choose a divisor"
            )
        layers: list[nn.Module] = [_first_layers(in_channels, channels[0], first, norm_groups)]
        before = channels[0]
        for stage, (width, count) in enumerate(zip(channels, blocks, strict=True)):
            if stage:
                layers.append(_activated_conv(before, width, norm_groups, stride=2))
            layers += [ResidualBlock(width, norm_groups) for _ in range(count)]
            before = width
        self.out_channels = before
        self.layers = nn.Sequential(*layers, nn.GroupNorm(norm_groups, before), nn.ReLU(inplace=True))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features [B, channels[-1], H', W'] of `images` [B, in_channels, H, W]."""
        return self.layers(images)


def _check_stages(channels: Sequence[int], blocks: Sequence[int], first: str) -> None:
    if first not in get_args(StemFirst):
        raise ValueError(f"first={first!r} is unknown; choose {one_of(get_args(StemFirst))}")
    if not channels or len(channels) != len(blocks):
        raise ShapeError(f"channels={channels!r} and blocks={blocks!r} must have one number a stage each")
    for width, count in zip(channels, blocks, strict=True):
        check_sizes(channels=width)
        if count != 0 and not is_count(count):
            raise ShapeError(f"blocks={count!r} must be a whole number of at least 0")


class _Conv(nn.Conv2d):
    """A convolution without bias that keeps the mean square of what passed a ReLU (He et al. 2015).

    zero: starts at 0 instead.
    """

    def __init__(
        self, in_channels: int, width: int, kernel_size: int, stride: int = 1, *, zero: bool = False
    ) -> None:
        self.zero = zero
        super().__init__(in_channels, width, kernel_size, stride, padding=kernel_size // 2, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        if self.zero:
            nn.init.zeros_(self.weight)
        else:
            nn.init.kaiming_normal_(self.weight, nonlinearity="relu")


def _first_layers(in_channels: int, width: int, first: str, norm_groups: int) -> nn.Sequential:
    if first == "conv3":
        return nn.Sequential(_Conv(in_channels, width, 3))
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    norm = nn.GroupNorm(norm_groups, width)
    return nn.Sequential(_Conv(in_channels, width, 7, stride=2), norm, nn.ReLU(inplace=True), pool)


def _activated_conv(
    in_channels: int, width: int, norm_groups: int, stride: int = 1, *, zero: bool = False
) -> nn.Sequential:
    norm = nn.GroupNorm(norm_groups, in_channels)
    return nn.Sequential(norm, nn.ReLU(inplace=True), _Conv(in_channels, width, 3, stride, zero=zero))
