"""Read a split: shards mapped into memory on first use, checked once, gathered by sample id.

Ours. Also the checks that read a whole split: `check_split` before a run, `verify_split` after packing.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capsdist.data.folder import open_folder
from capsdist.data.index import INDEX_NAME, Index, Shard, parse_index
from capsdist.errors import DataError

__all__ = ["Split", "check_num_classes", "check_split", "read_index", "verify_split"]

_REMEDY = "pack it again with a script of data_prep/"


def read_index(folder: str | os.PathLike[str], *, remedy: str = "") -> Index:
    """Read and check the index of the split in `folder`, a path or s3:// URL.

    `remedy` is what the error says where the split is not there, usually the command that packs it.

    Raises:
        DataError: folder or index missing, not JSON, of another format or version, or not what its
            own digest says.
    """
    place, remedy = open_folder(folder), remedy or _REMEDY
    return parse_index(place.read_index(remedy), f"{place}/{INDEX_NAME}", remedy)


@dataclass(frozen=True)
class _Open:
    """A mapped shard: every place of the file as the start of an image, labels, offsets of the blocks."""

    images: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray


class Split:
    """The samples of one split, by sample id: the place in storage order, 0 .. num_samples - 1.

    `folder`: a local path or an s3:// URL, whose shards go through the cache of the node. Make one a process
    and thread. A shard is mapped and its checksum compared when it is first touched, so that damage stops a
    run instead of entering it.

    Raises:
        DataError: the index is missing or unreadable; while reading, a shard that is missing, truncated
            or differs from its checksum, or a label that is not one of the classes.
    """

    def __init__(self, folder: str | os.PathLike[str], *, remedy: str = "") -> None:
        self.folder = open_folder(folder)
        self.index = read_index(folder, remedy=remedy)
        self._remedy = remedy
        self._mapped: OrderedDict[int, _Open] = OrderedDict()  # the one used last is the last
        self._mapped_bytes = 0

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 [n,C,H,W] and labels int64 [n] of `ids` [n], in that order."""
        images = np.empty((len(ids), *self.index.image_shape), np.uint8)
        labels = np.empty(len(ids), np.int64)
        self.gather_into(ids, images, labels)
        return images, labels

    def gather_into(self, ids: np.ndarray, images: np.ndarray, labels: np.ndarray) -> None:
        """Copy the samples `ids` [n] into contiguous `images` uint8 [n,C,H,W] and `labels` int64 [n].

        Cost: two copies of every image (about 0.4 us for 784 bytes) and about 30 us a shard touched; where
        the split is not local, the download of shards that the node does not have.
        """
        flat = images.reshape(len(ids), -1)
        which = self._shards_of(ids)
        self.prefetch(ids)
        for number in np.unique(which):
            rows = np.flatnonzero(which == number)
            local = ids[rows] - self.index.shard_starts[number]
            shard = self._open(int(number))
            block, place = np.divmod(local, self.index.block_size)
            flat[rows] = shard.images[shard.offsets[block] + place * self.index.image_bytes]
            labels[rows] = shard.labels[local]

    def prefetch(self, ids: np.ndarray) -> None:
        """Begin to fetch the shards of `ids` that are far away; return at once."""
        if not self.folder.is_near:
            numbers = [number for number in np.unique(self._shards_of(ids)) if number not in self._mapped]
            self.folder.prefetch([self.index.shards[number] for number in numbers])

    def labels(self, number: int) -> np.ndarray:
        """Return all labels of shard `number`, int64."""
        return self._open(number).labels

    def _shards_of(self, ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.index.shard_starts, ids, side="right") - 1

    def _open(self, number: int) -> _Open:
        if number in self._mapped:
            self._mapped.move_to_end(number)
            return self._mapped[number]
        index, shard = self.index, self.index.shards[number]
        self._make_room(shard.size_bytes)
        data = self.folder.map(shard, self._remedy)
        labels = _labels(data, shard)
        _check_labels(labels, index, number, index.num_classes, str(self.folder))
        # Every place of the file as the start of an image: a view, so one indexing call copies whole images.
        images = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), index.image_bytes)
        offsets = np.array([block.images_offset_bytes for block in shard.blocks])
        self._mapped[number] = opened = _Open(images, labels, offsets)
        return opened

    def _make_room(self, size_bytes: int) -> None:
        """Unmap the shards used longest ago, so that the cache may remove them; a local split keeps all."""
        self._mapped_bytes += size_bytes
        while self._mapped and self._mapped_bytes > self.folder.mapped_limit_bytes:
            number, _ = self._mapped.popitem(last=False)
            self._mapped_bytes -= self.index.shards[number].size_bytes


def check_split(
    folder: str | os.PathLike[str],
    *,
    image_shape: Sequence[int | None] | None = None,
    num_classes: int | None = None,
    crop: int = 0,
    remedy: str = "",
) -> Index:
    """Check a split before a run and return its index.

    A local split is read wholly. Of one on S3, which may be large, everything is checked that takes no
    download: access, the index, presence and size of every shard by listing them, the number of classes;
    checksums and labels are compared when a shard enters the cache, and damage stops the run there.
    `image_shape` is what stored images must be, (C, H, W), None for any; `crop` the side in pixels that
    they must have at least; `num_classes` the bound of the labels; `remedy` what an error about missing
    or damaged files tells the user to do, usually the packing command.

    Raises:
        DataError: everything that `read_index` and `Split` raise; a wrong image shape; a label out of range.
            A place on S3 that cannot be used is named in under 10 seconds.
    """
    place = open_folder(folder)
    place.check_access(remedy or "pack it with a script of data_prep/")
    split = Split(folder, remedy=remedy)
    index = split.index
    _check_shape(index, tuple(image_shape or (None, None, None)), crop, str(place))
    if num_classes is not None:
        check_num_classes(index, num_classes, str(place))
    if place.is_near:
        for number in range(len(index.shards)):
            split.labels(number)
    else:
        place.check_sizes(index.shards, remedy)
    return index


def check_num_classes(index: Index, num_classes: int, place: str) -> None:
    """Check that a network of `num_classes` classes can learn the split `index` at `place`.

    Raises:
        DataError: the split has more.
    """
    if index.num_classes > num_classes:
        raise DataError(
            f"{place}: has {index.num_classes} classes, the model takes {num_classes}; "
            f"set model.num_classes to {index.num_classes}"
        )


def verify_split(folder: str | os.PathLike[str], *, remedy: str = "") -> Index:
    """Compare every stored shard with its sha256, as well as everything that `check_split` checks.

    A split on S3 is downloaded wholly, past the cache.

    Raises:
        DataError: as `check_split`.
    """
    index, place = check_split(folder, remedy=remedy), open_folder(folder)
    for number, shard in enumerate(index.shards):
        labels = _labels(place.stored(shard, remedy), shard)
        _check_labels(labels, index, number, index.num_classes, str(place))
    return index


def _labels(data: bytes | mmap.mmap, shard: Shard) -> np.ndarray:
    blocks = (
        np.frombuffer(data, "<i8", block.num_samples, block.labels_offset_bytes) for block in shard.blocks
    )
    return np.concatenate(list(blocks)).astype(np.int64)


def _check_labels(labels: np.ndarray, index: Index, number: int, bound: int, place: str) -> None:
    """Check that `labels`, those of shard `number`, are in 0 .. bound - 1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= bound))
    if wrong.size:
        raise DataError(
            f"{place}: label {labels[wrong[0]]} of sample {index.shard_starts[number] + wrong[0]} "
            f"is outside 0..{bound - 1}; set model.num_classes to {index.num_classes}"
        )


def _check_shape(index: Index, expected: tuple[int | None, ...], crop: int, place: str) -> None:
    if any(want not in (None, have) for want, have in zip(expected, index.image_shape, strict=True)):
        text = " x ".join("any" if want is None else str(want) for want in expected)
        raise DataError(
            f"{place}: images are {_times(index.image_shape)} (C x H x W), the model takes {text}; "
            "choose the data set or model.in_channels and model.image_size accordingly"
        )
    if crop > min(index.image_shape[1:]):
        raise DataError(
            f"{place}: images are {_times(index.image_shape)} (C x H x W), "
            f"smaller than the crop {crop}; lower data.crop"
        )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
