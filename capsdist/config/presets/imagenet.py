"""ImageNet and its subsets: capsules over a residual network; no published source.

With many classes the absent ones dominate the margin loss (199 terms of weight 0.5 for 200 classes), and a
network lowers it first by making all capsules short: hence `absent_scaling`. With 200 classes each is in few
batches, and at the recipe's learning rate the capsules' lengths follow the last ones: hence a lower one.
"""

from __future__ import annotations

from typing import Any

from capsdist.config.models import Loss
from capsdist.config.presets.recipe import adamw_one_cycle, mirrored, resized
from capsdist.config.resnet_capsnet import ResNetCapsNetConfig
from capsdist.config.schema import Config, Data, Train

_RATE = 3e-4  # of 200 classes and more; 1e-3 raised the loss on 200
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images


def tiny_imagenet_resnet_capsnet() -> Config:
    """6,272 capsules of 8D to 200 of 16D, 161 M weights, over 15 convolutions; needs a GPU; no figure yet."""
    return Config(
        model=ResNetCapsNetConfig(in_channels=3, image_size=56, num_classes=200, primary_stride=1),
        loss=Loss(absent_scaling="classes"),
        data=_data("tiny_imagenet", decode_size=64, crop=56),
        optim=adamw_one_cycle(max_grad_norm=1.0, learning_rate=_RATE),
        train=Train(name="tiny-imagenet", epochs=60),
    )


def imagenette_resnet_capsnet() -> Config:
    """800 capsules to 10 classes at 160 pixels, 16.3 M parameters; needs a GPU; no figure yet."""
    return Config(
        model=ResNetCapsNetConfig(
            in_channels=3,
            image_size=160,
            stem_channels=(64, 128, 256, 512),
            stem_blocks=(2, 2, 2, 2),
            stem_first="conv7_pool",
            primary_stride=1,
        ),
        data=_data("imagenette", decode_size=192, resize=160, **resized(0.35)),
        optim=adamw_one_cycle(max_grad_norm=1.0),
        train=Train(name="imagenette", epochs=80, global_batch_size=64),
    )


def imagenet_resnet_capsnet() -> Config:
    """6,272 capsules of 8D to 1,000 of 16D, 803 M weights, at 224 pixels; several GPUs; no figure yet."""
    return _imagenet("imagenet", (64, 128, 256), (2, 2, 2))


def imagenet_resnet_capsnet_small() -> Config:
    """1,568 capsules of 8D to 1,000 of 16D, 201 M weights, at 224 pixels; needs a GPU; no figure yet."""
    return _imagenet("imagenet-small", (64, 128, 256, 512), (2, 2, 2, 2))


def _imagenet(name: str, channels: tuple[int, ...], blocks: tuple[int, ...]) -> Config:
    return Config(
        model=ResNetCapsNetConfig(
            in_channels=3,
            image_size=224,
            num_classes=1000,
            stem_channels=channels,
            stem_blocks=blocks,
            stem_first="conv7_pool",
            primary_stride=1,
        ),
        loss=Loss(absent_scaling="classes"),
        data=_data("imagenet", decode_size=256, resize=224, **resized(0.08)),
        optim=adamw_one_cycle(max_grad_norm=1.0, learning_rate=_RATE),
        train=Train(name=name, epochs=60, global_batch_size=256),
    )


def _data(name: str, **options: Any) -> Data:
    return mirrored(name, shift=0, normalise_mean=_MEAN, normalise_std=_STD, **options)


PRESETS = (
    tiny_imagenet_resnet_capsnet,
    imagenette_resnet_capsnet,
    imagenet_resnet_capsnet,
    imagenet_resnet_capsnet_small,
)
