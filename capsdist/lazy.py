"""Public names of a package that load on first use, so that importing the package is light."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

__all__ = ["load_on_use"]


def load_on_use(package: str, home: Mapping[str, str]) -> Callable[[str], object]:
    """Return the function `__getattr__` of `package` (PEP 562).

    home: the module of each public name; one that begins with a dot is below `package`.
    """

    def load(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(home)}")
        return getattr(import_module(home[name], package), name)

    return load
