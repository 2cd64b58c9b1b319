"""Checks of a whole split: `check_split` before a run, `verify_split` after packing."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence

import numpy as np

from capsdist.config.images import sides, size_text
from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.index import KEPT, Index, Shard
from capsdist.data.format.layout import ALIGNMENT
from capsdist.data.format.split import Split, check_content
from capsdist.errors import DataError

__all__ = ["check_num_classes", "check_split", "verify_split"]


def check_split(
    folder: str | os.PathLike[str],
    *,
    image_shape: Sequence[int | None] | None = None,
    num_classes: int | None = None,
    crop: int | tuple[int, int] = 0,
    remedy: str = "",
) -> Index:
    """Check a split before a run and return its index.

    A local split is read wholly. Of one on S3, which may be large, everything is checked that takes no
    download: access, the index, presence and size of every shard by listing them, the number of classes;
    checksums and labels are compared when a shard enters the cache, and damage stops the run there.
    `image_shape` is what stored images must be, (C, H, W), None for any; `crop` the side, or height and
    width, in pixels that they must have at least; `num_classes` the classes of the network; `remedy` what an
    error about missing or damaged files tells the user to do, usually the packing command.

    Raises:
        DataError: everything that `read_index` and `Split` raise; a wrong image shape; too many classes.
            A place on S3 that cannot be used is named in under 10 seconds.
    """
    place = SplitFolder(folder)
    place.check_access(remedy or "pack it (capsdist pack)")
    split = Split(folder, remedy=remedy, memory_bytes=0)
    index = split.index
    _check_shape(index, tuple(image_shape or (None, None, None)), crop, str(place))
    if num_classes is not None:
        check_num_classes(index, num_classes, str(place))
    if place.is_local:
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
    """Compare every stored shard with its sha256, and the headers of its members with the index.

    So is everything that `check_split` checks. A split on S3 is downloaded wholly, past the cache.

    Raises:
        DataError: as `check_split`; a header of the tar file that does not agree with the index.
    """
    index, place = check_split(folder, remedy=remedy), SplitFolder(folder)
    for number, shard in enumerate(index.shards):
        content, path = place.stored(shard, remedy), place.path(shard)
        check_content(content, index, number, path, remedy)
        if (found := _arrays(content)) != (expected := _expected_arrays(index, shard)):
            wrong = next((pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]), None)
            text = f"has {wrong[0]} where its index says {wrong[1]}" if wrong else "has other members"
            raise DataError(f"{path}: {text}; {remedy or KEPT}")
    return index


def _arrays(content: np.ndarray) -> list[str]:
    """Return kind and place of every member of a tar file, by its own headers; a pair shares its key."""
    found: list[str] = []
    key = ""
    try:
        with tarfile.open(fileobj=io.BytesIO(content.tobytes()), mode="r:") as tar:
            for member in tar:
                before, (key, _, kind) = key, member.name.partition(".")
                pairs = (key == before) == (kind == "y.npy") and key.isdecimal() and member.isfile()
                array = member.offset_data + ALIGNMENT, member.size - ALIGNMENT
                found.append(f"{kind if pairs else member.name} with {array[1]} bytes at byte {array[0]}")
    except (tarfile.TarError, ValueError) as error:
        found.append(f"no tar header ({error})")
    return found


def _expected_arrays(index: Index, shard: Shard) -> list[str]:
    found: list[str] = []
    for block in shard.blocks:
        for kind, offset, size in (
            ("x.npy", block.images_offset_bytes, block.num_samples * index.image_bytes),
            ("y.npy", block.labels_offset_bytes, 8 * block.num_samples),
        ):
            found.append(f"{kind} with {size} bytes at byte {offset}")
    return found


def _check_shape(
    index: Index, expected: tuple[int | None, ...], crop: int | tuple[int, int], place: str
) -> None:
    if any(want not in (None, have) for want, have in zip(expected, index.image_shape, strict=True)):
        text = " x ".join("any" if want is None else str(want) for want in expected)
        raise DataError(
            f"{place}: images are {_times(index.image_shape)} (C x H x W), the model takes {text}; "
            "choose the data set or model.in_channels and model.image_size accordingly"
        )
    if any(have < least for have, least in zip(index.image_shape[1:], sides(crop), strict=True)):
        raise DataError(
            f"{place}: images are {_times(index.image_shape)} (C x H x W), "
            f"smaller than the crop {size_text(crop)}; lower data.crop"
        )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
