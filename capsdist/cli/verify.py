"""Check every shard of packed data sets, on disk or on S3: index, sizes, xxh3, sha256, labels."""

from __future__ import annotations

from fnmatch import fnmatch

from capsdist.console import announced, log
from capsdist.data.format.checks import verify_split
from capsdist.data.format.index import INDEX_NAME
from capsdist.data.sets.pack import summary
from capsdist.errors import DataError
from capsdist.storage import join, open_folder

__all__ = ["verify"]

_NAMES = (INDEX_NAME, "shard-*.tar")
_REMEDY = "pack one (capsdist pack)"


def _splits(folder: str) -> list[str]:
    """Return every folder at or below `folder` that holds a shard or an index."""
    files = open_folder(folder)
    if files.local is None:
        files.check_readable(remedy=_REMEDY)
    keys = (name.rpartition("/") for name in files.sizes())
    parents = {parent for parent, _, name in keys if any(fnmatch(name, pattern) for pattern in _NAMES)}
    return sorted(join(str(files.local or folder), parent) if parent else folder for parent in parents)


def _options(split: str, decode_size: int) -> str:
    from capsdist.data.statistics import channel_statistics

    mean, std = (
        " ".join(f"{value:g}" for value in values)
        for values in channel_statistics(split, decode_size=decode_size)
    )
    return f"--data.normalise-mean {mean} --data.normalise-std {std}"


def verify(folder: str = "data", /, statistics: bool = False, decode_size: int = 0) -> None:
    """Check every shard of all packed splits in a folder; on S3 all of it is downloaded.

    Args:
        folder: A split, a data set, or the root of all data sets; a path or an s3:// URL.
        statistics: Also print mean and standard deviation of each channel, as options of a training.
        decode_size: Side to which encoded images of different sizes are decoded for the statistics.
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
            if statistics:
                print(f"  {_options(split, decode_size)}")
        except DataError as error:
            print(f"damaged: {error}")
            damaged.append(split)
    if damaged:
        raise DataError(f"damaged: {', '.join(damaged)}; pack again, intact shards are kept")
