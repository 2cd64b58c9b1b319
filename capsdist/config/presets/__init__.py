"""Presets: one function per published row, by name. `paper` and `official` differ where the sources do."""

from __future__ import annotations

from collections.abc import Callable

from capsdist.config.presets import (
    affnist,
    cifar10,
    digits,
    emnist,
    fashion_mnist,
    imagenet,
    later_routings,
    mnist,
    mnist_ablation,
    multimnist,
    own_images,
    resnet,
    smallnorb,
    svhn,
    transforming,
)
from capsdist.config.schema import Config
from capsdist.errors import ConfigError, Problem

_MODULES = (
    mnist, digits, mnist_ablation, multimnist, affnist, fashion_mnist, emnist, cifar10, resnet, svhn,
    smallnorb, imagenet, own_images, transforming, later_routings,
)  # fmt: skip
PRESETS: dict[str, Callable[[], Config]] = {
    function.__name__: function for module in _MODULES for function in module.PRESETS
}


def get_preset(name: str) -> Config:
    """Return the configuration called `name`, e.g. ``"mnist_paper"``.

    Raises:
        ConfigError: if there is no such preset; the message lists those there are.
    """
    if name not in PRESETS:
        raise ConfigError([Problem("preset", name, "is not a preset", f"choose one of {', '.join(PRESETS)}")])
    return PRESETS[name]().model_copy(update={"preset": name})
