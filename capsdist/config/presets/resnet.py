"""CIFAR-10 and CIFAR-100: capsules over a small residual network; no published source."""

from __future__ import annotations

from capsdist.config.models import Loss
from capsdist.config.presets.recipe import adamw_one_cycle, mirrored
from capsdist.config.resnet_capsnet import ResNetCapsNetConfig
from capsdist.config.schema import Config, Data, Train


def cifar10_resnet_capsnet() -> Config:
    """Capsules over 15 convolutions on CIFAR-10, 4.7 M parameters; needs a GPU; no figure yet."""
    return Config(
        model=ResNetCapsNetConfig(in_channels=3, image_size=32),
        data=_data("cifar10"),
        optim=adamw_one_cycle(),
        train=Train(name="cifar10-resnet", epochs=100),
    )


def cifar10_resnet_capsnet_cpu() -> Config:
    """Capsules over 7 convolutions on CIFAR-10, 0.9 M parameters; an hour on 2 CPU cores."""
    return Config(
        model=ResNetCapsNetConfig(
            in_channels=3,
            image_size=32,
            stem_channels=(32, 64, 128),
            stem_blocks=(0, 1, 1),
            primary_types=16,
        ),
        data=_data("cifar10", cutout=0),
        optim=adamw_one_cycle(learning_rate=3e-3),
        train=Train(name="cifar10-resnet-cpu", epochs=10, global_batch_size=64),
    )


def cifar100_resnet_capsnet() -> Config:
    """The same on CIFAR-100: absent classes weigh as much as those of 10 classes; no figure yet."""
    return Config(
        model=ResNetCapsNetConfig(in_channels=3, image_size=32, num_classes=100),
        loss=Loss(absent_scaling="classes"),
        data=_data("cifar100"),
        optim=adamw_one_cycle(),
        train=Train(name="cifar100-resnet", epochs=100),
    )


def _data(name: str, cutout: int = 8) -> Data:
    """Return how images are shown: shifted by up to 4 pixels, mirrored, with a square of `cutout` cut out."""
    scale = {"normalise_mean": (0.5, 0.5, 0.5), "normalise_std": (0.25, 0.25, 0.25)}
    return mirrored(name, shift=4, cutout=cutout, **scale)


PRESETS = (cifar10_resnet_capsnet, cifar10_resnet_capsnet_cpu, cifar100_resnet_capsnet)
