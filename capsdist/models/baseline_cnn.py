"""The convolutional baseline of the paper's Table 1 (section 5)."""

from __future__ import annotations

from torch import Tensor, nn

from capsdist.models.capsule_network import Output
from capsdist.models.layers import Conv2d, check_images, check_sizes

KERNEL_SIZE = 5


class BaselineCNN(nn.Module):
    """Three convolutions (5x5), two dense layers, a softmax layer.

    Source: paper, section 5: 256, 256 and 128 channels, 328 and 192 units; stride 1; dropout before the
    softmax layer; no pooling, and SAME padding, give the 35.4 M parameters that it states: 35,445,522 for
    28x28 grey images and 10 classes.

    Shapes: images [B, C, H, W] float -> `Output` with scores [B, J] = class logits (before softmax, or
    sigmoid where images have several labels).
    Raises: ShapeError if a size is no whole number of at least 1, or images are not [B, *image_shape].
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
        *,
        conv_channels: tuple[int, int, int] = (256, 256, 128),
        dense_units: tuple[int, int] = (328, 192),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_sizes(**{f"dense_units[{place}]": units for place, units in enumerate(dense_units)})
        channels, height, width = image_shape
        self.image_shape = channels, height, width
        layers: list[nn.Module] = []
        for out_channels in conv_channels:
            layers += [Conv2d(channels, out_channels, KERNEL_SIZE, padding="same"), nn.ReLU(inplace=True)]
            channels = out_channels
        layers.append(nn.Flatten())
        units = channels * height * width
        for out_units in dense_units:
            layers += [nn.Linear(units, out_units), nn.ReLU(inplace=True)]
            units = out_units
        self.layers = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(units, num_classes))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        """Return the class logits of `images` [B, C, H, W]; `labels` is for the common signature only."""
        check_images(images, self.image_shape)
        return Output(self.layers(images))
