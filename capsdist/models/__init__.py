"""Networks and layers: ordinary torch modules. `registry` and `build` read configurations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capsdist.models.baseline_cnn import BaselineCNN
    from capsdist.models.build import build_model
    from capsdist.models.capsnet import CapsNet, Output
    from capsdist.models.decoder import Decoder
    from capsdist.models.layers import ClassCapsules, PackedCapsules, PrimaryCapsules

# Names load on first use (PEP 562): `registry` is read without torch.
_HOME = {
    "BaselineCNN": "baseline_cnn",
    "CapsNet": "capsnet",
    "ClassCapsules": "layers",
    "Decoder": "decoder",
    "Output": "capsnet",
    "PackedCapsules": "layers",
    "PrimaryCapsules": "layers",
    "build_model": "build",
}

__all__ = [
    "BaselineCNN", "CapsNet", "ClassCapsules", "Decoder", "Output", "PackedCapsules", "PrimaryCapsules",
    "build_model",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Load a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
