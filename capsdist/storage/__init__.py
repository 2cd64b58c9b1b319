"""Folders of files on a disk or in object storage, durable writes, a node's cache. Start with README.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capsdist.storage.cache import Cache
    from capsdist.storage.folder import Folder, open_folder
    from capsdist.storage.place import Place, is_remote, join

# Names load on first use (PEP 562): the client of object storage costs 0.2 s, and local runs need none.
_HOME = {
    "Cache": "cache",
    "Folder": "folder",
    "Place": "place",
    "is_remote": "place",
    "join": "place",
    "open_folder": "folder",
}

__all__ = ["Cache", "Folder", "Place", "is_remote", "join", "open_folder"]


def __getattr__(name: str) -> object:
    """Load a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
