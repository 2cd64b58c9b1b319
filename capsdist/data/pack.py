"""What the packing commands share: pack the splits that are not packed yet, and end as a command should."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from capsdist.console import announced, run_program, tell
from capsdist.data.checks import check_split
from capsdist.data.index import Index
from capsdist.data.originals import Splits
from capsdist.data.shards import write_split
from capsdist.errors import DataError
from capsdist.storage import check_storage, is_remote, join
from capsdist.storage.place import in_uploaded_package

__all__ = ["pack", "run_command", "summary"]


def pack(
    root: str | Path,
    name: str,
    classes: Sequence[str],
    load: Callable[[], Splits],
    *,
    splits: Sequence[str] = ("train", "test"),
) -> None:
    """Write the data set `name` below `root`, a path or s3:// URL, unless it is there and intact.

    load: returns images uint8 [N,C,H,W] and labels int64 [N] of every split; called only if needed.
    A packed set with a missing or damaged shard is packed again; intact shards are kept. Whether a place on
    S3 can be written is checked before anything is loaded.

    Raises:
        DataError: what `load` and `write_split` raise.
    """
    if is_remote(root):
        check_storage(join(root, name), error=DataError)
    elif in_uploaded_package(str(root)):
        raise DataError(
            f"{root}: lies in the folder to which Ray has uploaded this job's code, and would be lost with "
            "it; give a folder that all machines see, or s3://bucket/prefix"
        )
    remedy = "it is written anew"
    folders = {split: join(root, name, split) for split in splits}
    try:
        with announced(tell, f"reading what is packed below {root}"):
            packed = [summary(folder, check_split(folder, remedy=remedy)) for folder in folders.values()]
        for line in packed:
            print(f"already packed: {line}")
        return
    except DataError as error:
        if is_remote(root) or any(Path(folder).exists() for folder in folders.values()):
            print(f"packing: {error}")
    with announced(tell, f"fetching and reading the original files of {name}"):
        loaded = load()
    for split, (images, labels) in loaded.items():
        with announced(tell, f"writing {folders[split]}"):
            index = write_split(folders[split], images, labels, classes=classes)
        print(f"packed: {summary(folders[split], index)}")


def summary(folder: str, index: Index) -> str:
    """Return one line on a packed split: images, shards, size, name of the data set."""
    shape = " x ".join(map(str, index.image_shape))
    megabytes = sum(shard.size_bytes for shard in index.shards) / 1e6
    return (
        f"{folder}: {index.num_samples:,} images of {shape} in {len(index.shards)} shards, "
        f"{megabytes:.1f} MB, digest {index.digest[:16]}"
    )


def run_command(main: Callable[..., None]) -> None:
    """Run `main` with arguments from the command line and exit: 0, or 1 with one line on stderr.

    A wrong command line exits with 2.
    """
    import tyro

    sys.exit(run_program(lambda: tyro.cli(main) or 0))
