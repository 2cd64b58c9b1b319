"""Read a split: shards mapped into memory on first use, checked once, gathered by sample id.

Ours. Also the checks that read a whole split: `check_split` before a run, `verify_split` after packing.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Sequence

import numpy as np
import xxhash

from capsdist.data.index import Index, Shard, local_folder, read_index
from capsdist.errors import DataError

__all__ = ["Split", "check_split", "verify_split"]


class Split:
    """The samples of one split, by sample id: the place in storage order, 0 .. num_samples - 1.

    Make one a process and thread. A shard is mapped and its checksum compared when it is first touched,
    so that damage stops a run instead of entering it.

    Raises:
        DataError: the index is missing or unreadable; while reading, a shard that is missing, truncated
            or differs from its checksum.
    """

    def __init__(self, folder: str | os.PathLike[str], *, remedy: str = "") -> None:
        self.folder = local_folder(folder)
        self.index = read_index(folder, remedy=remedy)
        self._remedy = remedy
        self._images: dict[int, np.ndarray] = {}
        self._labels: dict[int, np.ndarray] = {}
        self._offsets: dict[int, np.ndarray] = {}

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 [n,C,H,W] and labels int64 [n] of `ids` [n], in that order."""
        images = np.empty((len(ids), *self.index.image_shape), np.uint8)
        labels = np.empty(len(ids), np.int64)
        self.gather_into(ids, images, labels)
        return images, labels

    def gather_into(self, ids: np.ndarray, images: np.ndarray, labels: np.ndarray) -> None:
        """Copy the samples `ids` [n] into contiguous `images` uint8 [n,C,H,W] and `labels` int64 [n].

        Cost: two copies of every image (about 0.4 us for 784 bytes) and about 30 us a shard touched.
        """
        flat = images.reshape(len(ids), -1)
        which = np.searchsorted(self.index.shard_starts, ids, side="right") - 1
        for number in np.unique(which):
            rows = np.flatnonzero(which == number)
            local = ids[rows] - self.index.shard_starts[number]
            self._open(int(number))
            block, place = np.divmod(local, self.index.block_size)
            begins = self._offsets[number][block] + place * self.index.image_bytes
            flat[rows] = self._images[number][begins]
            labels[rows] = self._labels[number][local]

    def labels(self, number: int) -> np.ndarray:
        """Return all labels of shard `number`, int64."""
        self._open(number)
        return self._labels[number]

    def _open(self, number: int) -> None:
        if number in self._images:
            return
        shard = self.index.shards[number]
        data = self.map_shard(shard)
        if xxhash.xxh3_128_hexdigest(data) != shard.xxh3_128:
            path = self.folder / shard.name
            raise DataError(f"{path}: wrong checksum, the file is damaged; {self._repack()}")
        self._offsets[number] = np.array([block.images_offset_bytes for block in shard.blocks])
        labels = (
            np.frombuffer(data, "<i8", block.num_samples, block.labels_offset_bytes) for block in shard.blocks
        )
        self._labels[number] = np.concatenate(list(labels)).astype(np.int64)
        # Every place of the file as the start of an image: a view, so one indexing call copies whole images.
        self._images[number] = np.lib.stride_tricks.sliding_window_view(
            np.frombuffer(data, np.uint8), self.index.image_bytes
        )

    def map_shard(self, shard: Shard) -> mmap.mmap:
        """Map `shard` into memory; its size must be the index's, its content is not looked at."""
        path = self.folder / shard.name
        try:
            size = path.stat().st_size
            if size != shard.size_bytes:
                raise DataError(f"{path}: has {size} bytes instead of {shard.size_bytes}; {self._repack()}")
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise DataError(f"{path}: shard is missing; {self._repack()}") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); {self._repack()}") from None

    def _repack(self) -> str:
        return self._remedy or "pack the set again, intact shards are kept"


def check_split(
    folder: str | os.PathLike[str],
    *,
    image_shape: Sequence[int | None] | None = None,
    num_classes: int | None = None,
    crop: int = 0,
    remedy: str = "",
) -> Index:
    """Check a split wholly before a run and return its index.

    `image_shape` is what stored images must be, (C, H, W), None for any; `crop` the side in pixels that
    they must have at least; `num_classes` the bound of the labels; `remedy` what an error about missing
    or damaged files tells the user to do, usually the packing command.

    Raises:
        DataError: everything that `read_index` and `Split` raise; a wrong image shape; a label out of range.
    """
    split = Split(folder, remedy=remedy)
    index = split.index
    expected = tuple(image_shape or (None, None, None))
    if any(want not in (None, have) for want, have in zip(expected, index.image_shape, strict=True)):
        text = " x ".join("any" if want is None else str(want) for want in expected)
        raise DataError(
            f"{split.folder}: images are {_times(index.image_shape)} (C x H x W), the model takes {text}; "
            "choose the data set or model.in_channels and model.image_size accordingly"
        )
    if crop > min(index.image_shape[1:]):
        raise DataError(
            f"{split.folder}: images are {_times(index.image_shape)} (C x H x W), "
            f"smaller than the crop {crop}; lower data.crop"
        )
    bound = num_classes or index.num_classes
    for number in range(len(index.shards)):
        labels = split.labels(number)
        wrong = np.flatnonzero((labels < 0) | (labels >= bound))
        if wrong.size:
            raise DataError(
                f"{split.folder}: label {labels[wrong[0]]} of sample {index.shard_starts[number] + wrong[0]} "
                f"is outside 0..{bound - 1}; set model.num_classes to {index.num_classes}"
            )
    return index


def verify_split(folder: str | os.PathLike[str], *, remedy: str = "") -> Index:
    """Compare every shard with its sha256 as well as with everything that `check_split` checks.

    Raises:
        DataError: as `check_split`.
    """
    index = check_split(folder, remedy=remedy)
    split = Split(folder, remedy=remedy)
    for shard in index.shards:
        if hashlib.sha256(split.map_shard(shard)).hexdigest() != shard.sha256:
            path = split.folder / shard.name
            raise DataError(f"{path}: wrong sha256, the file is damaged; {remedy or 'pack the set again'}")
    return index


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
