"""CIFAR-10 and CIFAR-100: capsules over a small residual network; no published source."""

from __future__ import annotations

from capsdist.config.models import Loss
from capsdist.config.resnet_capsnet import ResNetCapsNetConfig
from capsdist.config.schema import Config, Data, Train


def cifar10_resnet_capsnet() -> Config:
    """Capsules over 14 convolutions on CIFAR-10, 4.7 M parameters; needs a GPU; no figure yet."""
    return Config(
        model=ResNetCapsNetConfig(in_channels=3, image_size=32),
        data=_data("cifar10"),
        train=Train(name="cifar10-resnet", epochs=100),
    )


def cifar100_resnet_capsnet() -> Config:
    """The same on CIFAR-100: absent classes weigh as much as those of 10 classes; no figure yet."""
    return Config(
        model=ResNetCapsNetConfig(in_channels=3, image_size=32, num_classes=100),
        loss=Loss(absent_scaling="classes"),
        data=_data("cifar100"),
        train=Train(name="cifar100-resnet", epochs=100),
    )


def _data(name: str) -> Data:
    """Return how images are shown: shifted by up to 4 pixels, mirrored, with a square of 8 pixels cut out."""
    return Data(
        name=name,
        train_split="train_part",
        validation_split="validation",
        shift=4,
        flip=True,
        cutout=8,
        normalise_mean=(0.5, 0.5, 0.5),
        normalise_std=(0.25, 0.25, 0.25),
    )


PRESETS = (cifar10_resnet_capsnet, cifar100_resnet_capsnet)
