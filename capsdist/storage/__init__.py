"""Folders of files on a disk or in object storage, durable writes, a node's cache. Start with README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsdist.lazy import load_on_use

if TYPE_CHECKING:
    from capsdist.storage.cache import Cache
    from capsdist.storage.folder import Folder, open_folder
    from capsdist.storage.place import Place, is_remote, join

__all__ = ["Cache", "Folder", "Place", "is_remote", "join", "open_folder"]

# Names load on first use: the client of object storage costs 0.2 s, and local runs need none.
__getattr__ = load_on_use(
    __name__,
    {
        "Cache": ".cache",
        "Folder": ".folder",
        "Place": ".place",
        "is_remote": ".place",
        "join": ".place",
        "open_folder": ".folder",
    },
)
