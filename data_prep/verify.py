"""Check every shard of packed data sets: index, sizes, xxh3, sha256, labels."""

from __future__ import annotations

from pathlib import Path

from capsdist.data.index import INDEX_NAME
from capsdist.data.pack import run_command, summary
from capsdist.data.split import verify_split
from capsdist.errors import DataError


def main(folder: Path = Path("data"), /) -> None:
    """Check every shard of all packed splits in a folder.

    Args:
        folder: A split, a data set, or the root of all data sets.
    """
    splits = sorted({path.parent for name in (INDEX_NAME, "shard-*.tar") for path in folder.rglob(name)})
    if not splits:
        raise DataError(f"{folder}: holds no packed data set; pack one with a script of data_prep/")
    damaged = []
    for split in splits:
        try:
            print(f"intact: {summary(split, verify_split(split))}")
        except DataError as error:
            print(f"damaged: {error}")
            damaged.append(str(split))
    if damaged:
        raise DataError(f"damaged: {', '.join(damaged)}; pack again, intact shards are kept")


if __name__ == "__main__":
    run_command(main)
