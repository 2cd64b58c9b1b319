"""CIFAR-10 (paper, section 7): 24x24 crops, 64 primary types, none-of-the-above routing."""

from __future__ import annotations

from capsdist.config.models import CapsNetConfig, Loss, Routing
from capsdist.config.schema import Config, Data, Optim, Train


def cifar10_paper() -> Config:
    """One member of the paper's ensemble of 7 (together 10.6 % error): 64 types, none-of-the-above."""
    return Config(
        model=CapsNetConfig(in_channels=3, image_size=24, primary_types=64, decoder=True),
        routing=Routing(none_of_the_above=True),
        data=Data(name="cifar10", validation_split=None, shift=0, crop=24),
        optim=Optim(epsilon_placement="tensorflow"),
        train=Train(name="cifar10", epochs=100, keep_best=0),
    )


def cifar10_official() -> Config:
    """The authors' released code: SAME padding (9,216 primary capsules), conv / 65, augmentation."""
    return Config(
        model=CapsNetConfig(
            in_channels=3,
            image_size=24,
            primary_types=64,
            primary_coupling=True,
            padding="same",
            decoder=False,
            capsule_bias=True,
            initialisation="truncated_normal",
        ),
        routing=Routing(none_of_the_above=True),
        loss=Loss(margin_reduction="official"),
        data=Data(
            name="cifar10",
            validation_split=None,
            shift=0,
            crop=24,
            flip=True,
            brightness=63.0,
            contrast=(0.2, 1.8),
            standardise=True,
            last_batch="carry",
        ),
        optim=Optim(epsilon_placement="tensorflow"),
        train=Train(
            name="cifar10-official",
            epochs=1536,  # 600,000 steps of 128
            precision="fp32",
            keep_best=0,
        ),
    )


PRESETS = (cifar10_paper, cifar10_official)
