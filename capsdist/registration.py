"""Register the operators of routing when torch is imported, so that exported networks load.

`torch.export.load` finds operators and the network's `Output` only where they are registered, which importing
the modules that define them does.
"""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

__all__ = ["register"]

_DEFINING = ("capsdist.models.capsnet", "capsdist.routing.dynamic.fused.operators")


def register() -> None:
    """Register what exported networks are made of: now if torch is loaded, else once it is."""
    if _is_loaded("torch"):
        _import()
    elif _AfterTorch not in sys.meta_path:
        sys.meta_path.insert(0, _AfterTorch)


class _AfterTorch:
    """A finder for one import: at the first one after that of torch it registers, and goes.

    `torch.export.load` imports modules of torch itself, so it comes in time. Registering right after torch
    would be too early where a module of ours is what imports torch: it is not yet complete.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return None: others find it. But a module that registering has imported is there already."""
        if not _is_loaded("torch"):  # every import passes here until torch is there
            return None
        # A copy, which is made at once: other threads import meanwhile.
        loaded = list(sys.modules.items())
        ours = [each for each, module in loaded if each.startswith("capsdist.") and module]
        if all(map(_is_loaded, ours)):
            if _AfterTorch in sys.meta_path:
                sys.meta_path.remove(_AfterTorch)
            _import()
            if (module := sys.modules.get(name)) is not None:
                # Python loads it by the spec that the module has: its own would run it a second time.
                module.__spec__ = spec_from_loader(name, _Loaded(module))
                return module.__spec__
        return None


class _Loaded(Loader):
    """Loads a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Give it back the spec that it had."""
        module.__spec__ = self._spec


def _is_loaded(name: str) -> bool:
    """Say whether a module has been imported, and to its end."""
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


def _import() -> None:
    """Import what registers; where that fails, whoever uses it meets the error, not an import of others."""
    with contextlib.suppress(ImportError):
        for name in _DEFINING:
            import_module(name)
