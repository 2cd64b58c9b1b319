"""What follows from the parts of an index of any format: from the fields of a sample, from the shards."""

from __future__ import annotations

from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np

from capsdist.data.format.fields import Field
from capsdist.data.format.packed import IMAGE, LABEL, LABELS

__all__ = ["OfFields", "OfShards"]


class OfFields:
    """An index with the fields of a sample, `image` among them, and names of classes."""

    fields: tuple[Field, ...]
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are in 0 .. num_classes - 1."""
        return len(self.classes)

    @property
    def field(self) -> dict[str, Field]:
        """The fields by name."""
        return self._field

    @cached_property
    def _field(self) -> dict[str, Field]:
        return {field.name: field for field in self.fields}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image."""
        channels, height, width = self.field[IMAGE].shape
        return channels, height, width

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of a stored image: `image_shape`."""
        return self.image_shape

    @property
    def image_bytes(self) -> int:
        """Bytes of one image (uint8)."""
        return self.field[IMAGE].num_bytes

    @property
    def label_name(self) -> str:
        """Name of the field with the classes of an image: `label`, or `labels` with several."""
        return LABEL if LABEL in self.field else LABELS


class _Shard(Protocol):
    """A file with samples."""

    @property
    def num_samples(self) -> int:
        """Samples in the file."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        ...


_S = TypeVar("_S", bound=_Shard)


class OfShards(Generic[_S]):
    """An index with the files that hold the samples."""

    shards: tuple[_S, ...]

    @property
    def shard_starts(self) -> np.ndarray:
        """Sample id at which each shard starts, and the total last: int64 [shards + 1]."""
        return self._shard_starts

    @cached_property
    def _shard_starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum([shard.num_samples for shard in self.shards], dtype=np.int64)])

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return int(self.shard_starts[-1])

    @property
    def stored(self) -> str:
        """Where the samples are stored, in words."""
        return f"{len(self.shards)} shards, {sum(shard.size_bytes for shard in self.shards) / 1e6:.1f} MB"
