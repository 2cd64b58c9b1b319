"""SVHN (paper, section 7): a smaller network on the 73,257 colour images of house numbers."""

from __future__ import annotations

from capsdist.config.presets.mnist import mnist_paper
from capsdist.config.schema import Config
from capsdist.config.values import with_values


def svhn_paper() -> Config:
    """64 channels, 16 types of 6D, class capsules of 8D; paper: 4.3 % test error. Shift and decoder: ours."""
    return with_values(
        mnist_paper(),
        {
            "model.in_channels": 3,
            "model.image_size": 32,
            "model.conv_channels": 64,
            "model.primary_types": 16,
            "model.primary_dim": 6,
            "model.class_dim": 8,
            "data.name": "svhn",
            "train.name": "svhn",
        },
    )


PRESETS = (svhn_paper,)
