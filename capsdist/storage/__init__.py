"""Files that last, and object storage: readers, writers, checks, a node's cache. Start with README.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capsdist.storage.cache import Cache
    from capsdist.storage.check import check_readable, check_storage
    from capsdist.storage.objects import ObjectFolder
    from capsdist.storage.place import Place, is_remote, join

# Names load on first use (PEP 562): the client of object storage costs 0.2 s, and local runs need none.
_HOME = {
    "Cache": "cache",
    "ObjectFolder": "objects",
    "Place": "place",
    "check_readable": "check",
    "check_storage": "check",
    "is_remote": "place",
    "join": "place",
}

__all__ = ["Cache", "ObjectFolder", "Place", "check_readable", "check_storage", "is_remote", "join"]


def __getattr__(name: str) -> object:
    """Load a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
