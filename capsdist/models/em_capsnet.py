"""The network of matrix capsules with EM routing.

Source: Hinton, Sabour, Frosst, "Matrix capsules with EM routing" (ICLR 2018), section 4 and figure 1.
"""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn
from torch.nn import functional

from capsdist.errors import ShapeError
from capsdist.models.capsule_network import Output
from capsdist.models.layers import Conv2d, check_images, check_sizes
from capsdist.models.matrix_layers import (
    MatrixClassCapsules,
    MatrixConvCapsules,
    PrimaryMatrixCapsules,
)
from capsdist.routing.common.fields import fields_of
from capsdist.routing.em.options import EMKeywords

__all__ = ["EMCapsNet"]


class EMCapsNet(nn.Module):
    """Convolution, primary, convolutional and class matrix capsules (paper, section 4).

    The names of the paper's sizes: A = `conv_channels`, B = `primary_types`, C and D = `capsule_types`.
    A convolution with ReLU is under the capsules; the layers of convolutional capsules have `capsule_kernels`
    and `capsule_strides`, one of each a layer.

    The score of a class is the activation of its capsule. `iterations` and `options` are those of `route_em`.

    Shapes: images [B, C, H, W] -> `Output`, whose parent poses are the class capsules' matrices, flattened to
    [B, J, S * S].
    Raises: ShapeError if image_shape is too small for the kernels, the tuples differ in length, or a
    layer refuses its size or option.

    Example:
        >>> import torch
        >>> network = EMCapsNet(image_shape=(2, 32, 32), num_classes=5)
        >>> network(torch.rand(2, 2, 32, 32)).scores.shape, sum(p.numel() for p in network.parameters())
        (torch.Size([2, 5]), 317194)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (2, 32, 32),
        num_classes: int = 5,
        *,
        conv_channels: int = 32,
        conv_kernel: int = 5,
        conv_stride: int = 2,
        primary_types: int = 32,
        capsule_types: tuple[int, ...] = (32, 32),
        capsule_kernels: tuple[int, ...] = (3, 3),
        capsule_strides: tuple[int, ...] = (2, 1),
        pose_side: int = 4,
        iterations: int = 3,
        **options: Unpack[EMKeywords],
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes)
        numbers = capsule_types, capsule_kernels, capsule_strides
        if len({len(each) for each in numbers}) > 1:
            raise ShapeError(
                f"capsule_types={capsule_types!r}, capsule_kernels={capsule_kernels!r} and "
                f"capsule_strides={capsule_strides!r} differ in length; give one of each for every layer"
            )
        channels, height, width = image_shape
        self.image_shape, self.num_classes = (channels, height, width), num_classes
        self.conv = Conv2d(channels, conv_channels, conv_kernel, conv_stride)
        shape: tuple[int, ...] = self.conv.output_side(height), self.conv.output_side(width)
        if min(shape) < 1:
            raise ShapeError(f"image_shape={self.image_shape} is smaller than conv_kernel={conv_kernel}")
        self.primary_capsules = PrimaryMatrixCapsules(conv_channels, primary_types, pose_side)
        layers, below = [], primary_types
        for types, kernel, stride in zip(*numbers, strict=True):
            layer = MatrixConvCapsules(
                below, types, kernel, stride, side=pose_side, iterations=iterations, **options
            )
            shape, below = fields_of(shape, layer.kernel, layer.stride, "valid").parent_shape, types
            layers.append(layer)
        self.conv_capsules = nn.Sequential(*layers)
        self.class_capsules = MatrixClassCapsules(
            below, num_classes, side=pose_side, iterations=iterations, **options
        )

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        """Return scores and class capsules of `images` [B, C, H, W]; labels change nothing."""
        check_images(images, self.image_shape)
        capsules = self.primary_capsules(functional.relu(self.conv(images), inplace=True))
        found = self.class_capsules(self.conv_capsules(capsules))
        return Output(found.activations, found.poses.flatten(2))
