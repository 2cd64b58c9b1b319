"""Check every shard of packed data sets, on disk or on S3: index, sizes, xxh3, sha256, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from capsdist.console import announced, log
from capsdist.data.format.checks import verify_split
from capsdist.data.format.packed import INDEX_NAME
from capsdist.data.format.source import Observe
from capsdist.data.sets.pack import summary
from capsdist.errors import DataError
from capsdist.storage import join, open_folder
from capsdist.storage.documents import printable

if TYPE_CHECKING:
    import numpy as np

    from capsdist.analysis.sheets import Picks
    from capsdist.data.format.source import SourceIndex

__all__ = ["verify"]

_NAMES = (INDEX_NAME, "shard-*.tar")
_REMEDY = "pack one (capsdist pack)"
_BAR = 40  # letters of the longest bar of the histogram
_MAX_CLASSES = 100  # that have a line each


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


def _histogram(counts: Sequence[int], classes: Sequence[str]) -> list[str]:
    """Return a line for each class: label, name, number of images, and a bar; for many classes one in all."""
    if len(classes) > _MAX_CLASSES:
        return [f"{len(classes):,} classes of {min(counts):,} to {max(counts):,} images"]
    names, most = [printable(name) for name in classes], max(*counts, 1)
    wide, numbers = max(map(len, names)), len(f"{most:,}")
    return [
        f"{label:>3} {name:<{wide}} {count:>{numbers},} {'#' * round(_BAR * count / most)}".rstrip()
        for label, (name, count) in enumerate(zip(names, counts, strict=True))
    ]


def _place(picture: Path, split: str, num_splits: int) -> Path:
    """Return where the picture of a split goes: `picture`, or beside it with the names of set and split."""
    if num_splits == 1:
        return picture
    names = split.rstrip("/").split("/")[-2:]
    return picture.with_name("-".join([picture.stem, *names]) + picture.suffix)


def _draw(split: str, picks: Picks, index: SourceIndex, path: Path) -> None:
    from capsdist.analysis.sheets import draw_cells, in_rows, write_png

    cells = picks.cells(index.classes)
    heading = f"{split}: {len(cells):,} of {index.num_samples:,} images, {len(index.classes):,} classes"
    write_png(draw_cells(in_rows(cells), heading), path)
    print(f"picture: {path}")


def _all(*observers: Observe) -> Observe:
    """Return what calls all of `observers`."""

    def observe(first: int, fields: Mapping[str, np.ndarray]) -> None:
        for each in observers:
            each(first, fields)

    return observe


def verify(
    folder: str = "data",
    /,
    statistics: bool = False,
    picture: Path | None = None,
    decode_size: int = 0,
) -> None:
    """Check every shard of all packed splits in a folder, and count the images of each class.

    On S3 all of it is downloaded. The exit status is 1 if anything is damaged.

    Args:
        folder: A split, a data set, or the root of all data sets; a path or an s3:// URL.
        statistics: Also print mean and standard deviation of each channel, as options of a training.
        picture: Also draw images of all classes with their labels to this PNG file; of several splits one
            each, with the names of data set and split before the suffix.
        decode_size: Side to which encoded images are decoded for statistics and picture; 0: the stored one.
    """
    from capsdist.analysis.sheets import ClassCounts, Picks

    found = _splits(folder)
    if not found:
        raise DataError(f"{folder}: holds no packed data set; {_REMEDY}")
    damaged = []
    for split in found:
        counts, picks = ClassCounts(), Picks()
        observe = _all(counts, picks) if picture else counts
        try:
            with announced(log, f"reading {split}"):
                index = verify_split(split, decode_size=decode_size, observe=observe)
        except DataError as error:
            print(f"damaged: {error}")
            damaged.append(split)
            continue
        print(f"intact: {summary(split, index)}")
        if statistics:
            print(f"  {_options(split, decode_size)}")
        if counts.num_images < index.num_samples:
            print(f"  classes of {counts.num_images:,} of {index.num_samples:,} images:")
        for line in _histogram(counts.of(len(index.classes)), index.classes):
            print(f"  {line}")
        if picture:
            _draw(split, picks, index, _place(picture, split, len(found)))
    if damaged:
        raise DataError(f"damaged: {', '.join(damaged)}; pack again or index again, intact shards are kept")
