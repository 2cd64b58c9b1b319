"""What training and evaluation need of a split, whatever the format of its files.

A format is one module with a class that is a `Source`, and a line in `FORMATS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Protocol

import numpy as np

from capsdist.data.format.fields import Field
from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.index import INDEX_NAME
from capsdist.data.format.packed import ENCODED, FORMAT, RECIPES, format_of
from capsdist.errors import DataError, DocumentError

__all__ = ["FORMATS", "Observe", "Source", "SourceIndex", "open_split"]

FORMATS = {
    FORMAT: "capsdist.data.format.split:Split",
    ENCODED: "capsdist.data.encoded.split:EncodedSplit",
    RECIPES: "capsdist.data.recipes.source:Recipes",
}
"""Import path of the `Source` that reads each format, by the key `format` of an index."""


Observe = Callable[[int, Mapping[str, np.ndarray]], None]
"""Called as observe(first, fields): the id of the first of n samples, and arrays [n, ...] by field."""


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
    def stored_shape(self) -> tuple[int | None, ...]:
        """Shape (C, H, W) of the images as they are stored, None where it differs from image to image."""
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

    Made with (folder, *, remedy="", size=None): a path or URL, what an error about missing files tells the
    user to do, and the height and width of the images that the source returns, None for that of the stored
    ones. One serves one process and thread.
    """

    @property
    def index(self) -> SourceIndex:
        """What the samples are."""
        ...

    @property
    def is_local(self) -> bool:
        """Is nothing gained by an early `prefetch`?"""
        ...

    @property
    def decodes(self) -> bool:
        """Are images decoded, in threads? Then it is faster to gather many at once."""
        ...

    def gather_into(self, ids: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Copy the samples `ids` [n] into `out`: contiguous arrays [n, ...] by the names of fields.

        With `decodes`, images [n, C, H, W] may be a view of a contiguous array [n, H, W, C].
        """

    def prefetch(self, ids: np.ndarray) -> None:
        """Begin to fetch what the samples `ids` need; return at once."""

    def check_files(self) -> None:
        """Compare the files with the index before a run: local ones wholly if they are not large."""

    def verify_files(self, observe: Observe | None = None) -> None:
        """Compare every byte of the files with the index, far away ones past the cache.

        observe: called with the samples that were read, in storage order.
        """


def open_split(
    folder: str | os.PathLike[str], *, remedy: str = "", size: tuple[int, int] | None = None
) -> Source:
    """Open the split in `folder`, a path or s3:// URL, with the reader of its format.

    size: height and width, in pixels, to which encoded images are decoded; None: the stored one.

    Raises:
        DataError: there is no split, its format is unknown, it holds pixels of another size, or what its
            reader raises.
    """
    place, told = SplitFolder(folder), remedy or "pack it again (capsdist pack)"
    try:
        found = format_of(place.read_index(told))
    except DocumentError as error:
        raise DataError(f"{place}/{INDEX_NAME}: {error}; {told}") from None
    module, _, name = FORMATS[found if found in FORMATS else FORMAT].partition(":")
    source: Source = getattr(import_module(module), name)(folder, remedy=remedy, size=size)
    return source
