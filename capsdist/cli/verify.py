"""Check every shard of packed data sets, on disk or on S3: index, sizes, xxh3, sha256, labels."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from capsdist.console import announced, log
from capsdist.data.format.checks import verify_split
from capsdist.data.format.index import INDEX_NAME
from capsdist.data.sets.pack import summary
from capsdist.errors import DataError
from capsdist.storage import ObjectFolder, check_readable, is_remote, join

__all__ = ["verify"]

_NAMES = (INDEX_NAME, "shard-*.tar")
_REMEDY = "pack one (capsdist pack)"


def _splits(folder: str) -> list[str]:
    """Return every folder at or below `folder` that holds a shard or an index."""
    if not is_remote(folder):
        return sorted({str(path.parent) for name in _NAMES for path in Path(folder).rglob(name)})
    check_readable(folder, remedy=_REMEDY)
    keys = (name.rpartition("/") for name in ObjectFolder(folder).sizes())
    parents = {parent for parent, _, name in keys if any(fnmatch(name, pattern) for pattern in _NAMES)}
    return sorted(join(folder, parent) if parent else folder for parent in parents)


def verify(folder: str = "data", /) -> None:
    """Check every shard of all packed splits in a folder; on S3 all of it is downloaded.

    Args:
        folder: A split, a data set, or the root of all data sets; a path or an s3:// URL.
    """
    found = _splits(folder)
    if not found:
        raise DataError(f"{folder}: holds no packed data set; {_REMEDY}")
    damaged = []
    for split in found:
        try:
            with announced(log, f"reading {split}"):
                index = verify_split(split)
            print(f"intact: {summary(split, index)}")
        except DataError as error:
            print(f"damaged: {error}")
            damaged.append(split)
    if damaged:
        raise DataError(f"damaged: {', '.join(damaged)}; pack again, intact shards are kept")
