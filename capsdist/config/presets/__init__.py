"""Presets: one function per published row, by name. `paper` and `official` differ where the sources do."""

from __future__ import annotations

from collections.abc import Callable

from capsdist.config.presets import cifar10, fashion_mnist, imagenet, mnist, own_images, resnet
from capsdist.config.schema import Config
from capsdist.errors import ConfigError, Problem

_MODULES = (mnist, fashion_mnist, cifar10, resnet, imagenet, own_images)
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
