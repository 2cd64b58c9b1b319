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

FORMATS = {"capsdist-blocks": "capsdist.data.format.split:Split"}
"""Import path of the `Source` that reads each format, by the key `format` of an index."""


class SourceIndex(Protocol):
    """What an index of any format says.

    digest: names the data set; shard_starts: sample id at which each shard starts, and the total last, int64
    [shards + 1]; image_shape: (C, H, W) of the images that the source returns.
    """

    @property
    def digest(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def shard_starts(self) -> np.ndarray: ...
    @property
    def field(self) -> Mapping[str, Field]: ...
    @property
    def label_name(self) -> str: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def image_bytes(self) -> int: ...


class Source(Protocol):
    """The samples of one split, by sample id: the place in storage order, 0 .. num_samples - 1.

    Made with (folder, *, remedy=""): a path or URL, and what an error about missing files tells the user to do.
    One serves one process and thread. is_local: nothing is gained by an early `prefetch`.
    """

    @property
    def index(self) -> SourceIndex: ...
    @property
    def is_local(self) -> bool: ...

    def gather_into(self, ids: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Copy the samples `ids` [n] into `out`: contiguous arrays [n, ...] by the names of fields."""

    def prefetch(self, ids: np.ndarray) -> None:
        """Begin to fetch what the samples `ids` need; return at once."""


def open_split(folder: str | os.PathLike[str], *, remedy: str = "") -> Source:
    """Open the split in `folder`, a path or s3:// URL, with the reader of its format.

    Raises:
        DataError: there is no split, its format is unknown, or what its reader raises.
    """
    place = SplitFolder(folder)
    try:
        found = format_of(place.read_index(remedy or "pack it (capsdist pack)"))
    except DocumentError as error:
        raise DataError(f"{place}/{INDEX_NAME}: {error}; {remedy or 'pack it again (capsdist pack)'}") from None
    module, _, name = FORMATS[found if found in FORMATS else "capsdist-blocks"].partition(":")
    source: Source = getattr(import_module(module), name)(folder, remedy=remedy)
    return source
