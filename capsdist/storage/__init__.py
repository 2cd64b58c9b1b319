"""Object storage: what a URL names, whether it works, whole objects, a node's cache. Start with README.md."""

from __future__ import annotations

from capsdist.storage.cache import Cache
from capsdist.storage.check import check_readable, check_storage
from capsdist.storage.objects import ObjectFolder
from capsdist.storage.place import Place, is_remote, join

__all__ = ["Cache", "ObjectFolder", "Place", "check_readable", "check_storage", "is_remote", "join"]
