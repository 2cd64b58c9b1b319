"""Register the operators of routing when torch is imported, so that exported networks load.

`torch.export.load` finds operators and the network's `Output` only where they are registered, which importing
the modules that define them does.
"""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module

__all__ = ["register"]

_DEFINING = ("capsdist.models.capsnet", "capsdist.routing.dynamic.fused.operators")


def register() -> None:
    """Register what exported networks are made of: now if torch is loaded, else once it is."""
    if _is_loaded("torch"):
        _import()
    elif _AfterTorch not in sys.meta_path:
        sys.meta_path.insert(0, _AfterTorch)


class _AfterTorch:
    """A finder that finds nothing: at the first import after that of torch it registers, and goes.

    `torch.export.load` imports modules of torch itself, so it comes in time. Registering right after torch
    would be too early where a module of ours is what imports torch: it is not yet complete.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Return None for every name: others find it."""
        if not _is_loaded("torch"):  # every import passes here until torch is there
            return
        # A copy, which is made at once: other threads import meanwhile.
        loaded = list(sys.modules.items())
        ours = [each for each, module in loaded if each.startswith("capsdist.") and module]
        if all(map(_is_loaded, ours)):
            if _AfterTorch in sys.meta_path:
                sys.meta_path.remove(_AfterTorch)
            _import()


def _is_loaded(name: str) -> bool:
    """Say whether a module has been imported, and to its end."""
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


def _import() -> None:
    """Import what registers; where that fails, whoever uses it meets the error, not an import of others."""
    with contextlib.suppress(ImportError):
        for name in _DEFINING:
            import_module(name)
