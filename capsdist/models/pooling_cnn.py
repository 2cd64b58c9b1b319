"""The convolutional baseline with pooling that the paper compares with on MultiMNIST (section 6)."""

from __future__ import annotations

from torch import Tensor, nn

from capsdist.models.capsule_network import Output
from capsdist.models.layers import Conv2d, check_images

KERNELS = (9, 5)
POOL = 2


class PoolingCNN(nn.Module):
    """Two convolutions (9x9, 5x5), each with a 2x2 max pool, and dense layers.

    Source: paper, section 6: 512 and 256 channels, stride 1, and 1,024 units, ReLU each. It states 24.56 M
    parameters: SAME padding gives 24,563,978 for 36x36 grey images and 10 classes. A pool of an odd side
    keeps the last row, as SAME padding does in TensorFlow.

    Shapes: images [B, C, H, W] float -> `Output` with scores [B, J] = class logits (before sigmoid, or before
    softmax where images have one label).
    Raises: ShapeError if a size is no whole number of at least 1, or images are not [B, *image_shape].

    Example:
        >>> import torch
        >>> PoolingCNN((1, 9, 7), 3, conv_channels=(4, 6), dense_units=5)(torch.rand(2, 1, 9, 7)).scores.shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 36, 36),
        num_classes: int = 10,
        *,
        conv_channels: tuple[int, int] = (512, 256),
        dense_units: int = 1024,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = channels, height, width
        layers: list[nn.Module] = []
        for out_channels, kernel in zip(conv_channels, KERNELS, strict=True):
            layers += [Conv2d(channels, out_channels, kernel, padding="same"), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool2d(POOL, ceil_mode=True))
            channels, height, width = out_channels, -(-height // POOL), -(-width // POOL)
        layers += [nn.Flatten(), nn.Linear(channels * height * width, dense_units), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(dense_units, num_classes))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        """Return the class logits of `images` [B, C, H, W]; `labels` is for the common signature only."""
        check_images(images, self.image_shape)
        return Output(self.layers(images))
