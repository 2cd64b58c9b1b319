"""What training and evaluation need of a split, whatever the format of its files.

A format is one module with a class that is a `Source`, and a line in `FORMATS`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Protocol

import numpy as np

from capsdist.data.format.fields import Field
from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.index import INDEX_NAME
from capsdist.data.format.packed import format_of
from capsdist.errors import DataError, DocumentError

__all__ = ["FORMATS", "Source", "SourceIndex", "open_split"]

FORMATS = {
    "capsdist-blocks": "capsdist.data.format.split:Split",
    "capsdist-recipes": "capsdist.data.recipes.source:Recipes",
}
"""Import path of the `Source` that reads each format, by the key `format` of an index."""


class SourceIndex(Protocol):
    """What an index of any format says."""

    @property
    def digest(self) -> str:
        """Sha256, hex: names the data set."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        ...

    @property
    def shard_starts(self) -> np.ndarray:
        """Sample id at which each shard starts, and the total last: int64 [shards + 1]."""
        ...

    @property
    def field(self) -> Mapping[str, Field]:
        """The fields of a sample by name."""
        ...

    @property
    def label_name(self) -> str:
        """`label`, or `labels` where an image has several."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images that the source returns."""
        ...

    @property
    def image_bytes(self) -> int:
        """Bytes of one of them (uint8)."""
        ...

    @property
    def stored(self) -> str:
        """Where the pixels are stored, in words: `8 shards, 56.2 MB`."""
        ...


class Source(Protocol):
    """The samples of one split, by sample id: the place in storage order, 0 .. num_samples - 1.

    Made with (folder, *, remedy=""): a path or URL, and what an error about missing files tells the user to
    do. One serves one process and thread.
    """

    @property
    def index(self) -> SourceIndex:
        """What the samples are."""
        ...

    @property
    def is_local(self) -> bool:
        """Is nothing gained by an early `prefetch`?"""
        ...

    def gather_into(self, ids: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Copy the samples `ids` [n] into `out`: contiguous arrays [n, ...] by the names of fields."""

    def prefetch(self, ids: np.ndarray) -> None:
        """Begin to fetch what the samples `ids` need; return at once."""


def open_split(folder: str | os.PathLike[str], *, remedy: str = "") -> Source:
    """Open the split in `folder`, a path or s3:// URL, with the reader of its format.

    Raises:
        DataError: there is no split, its format is unknown, or what its reader raises.
    """
    place, told = SplitFolder(folder), remedy or "pack it again (capsdist pack)"
    try:
        found = format_of(place.read_index(told))
    except DocumentError as error:
        raise DataError(f"{place}/{INDEX_NAME}: {error}; {told}") from None
    module, _, name = FORMATS[found if found in FORMATS else "capsdist-blocks"].partition(":")
    source: Source = getattr(import_module(module), name)(folder, remedy=remedy)
    return source
