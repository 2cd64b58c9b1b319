"""Training capsule networks at scale. Public names load on first use, so that importing is light."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from capsdist.registration import register

if TYPE_CHECKING:
    from capsdist.config import Config, get_preset
    from capsdist.inference import load
    from capsdist.models import CapsNet, ClassCapsules, PrimaryCapsules, build_model
    from capsdist.ops import margin_loss, squash
    from capsdist.routing import route

__version__ = "0.1.0"

_HOME = {
    "CapsNet": "capsdist.models",
    "ClassCapsules": "capsdist.models",
    "Config": "capsdist.config",
    "PrimaryCapsules": "capsdist.models",
    "build_model": "capsdist.models",
    "get_preset": "capsdist.config",
    "load": "capsdist.inference",
    "margin_loss": "capsdist.ops",
    "route": "capsdist.routing",
    "squash": "capsdist.ops",
}

__all__ = [
    "CapsNet", "ClassCapsules", "Config", "PrimaryCapsules", "__version__", "build_model", "get_preset",
    "load", "margin_loss", "route", "squash",
]  # fmt: skip


_MODULES = ("config", "data", "models", "ops", "routing", "train", "tune")


def __getattr__(name: str) -> object:
    """Load a public name, or a module that has more of them, on first use (PEP 562)."""
    if name in _MODULES:
        return import_module(f"capsdist.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'capsdist' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Return the public names, loaded or not, so that an interpreter completes them."""
    return sorted({*__all__, *_MODULES})


register()
