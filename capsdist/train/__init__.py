"""Training: loop, step, checkpoints, engines. Names load on first use, so that importing is light."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capsdist.train.checkpoint import load_model
    from capsdist.train.loop import run_training

_HOME = {
    "load_model": "capsdist.train.checkpoint",
    "run_training": "capsdist.train.loop",
}

__all__ = ["load_model", "run_training"]


def __getattr__(name: str) -> object:
    """Load a public name from its home module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
