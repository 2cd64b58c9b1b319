"""Checks of a whole split: `check_split` before a run, `verify_split` after packing."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence

import numpy as np
import xxhash

from capsdist.config.images import sides, size_text
from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.index import KEPT, Index
from capsdist.data.format.source import SourceIndex, open_split
from capsdist.data.format.split import Split, read_shard
from capsdist.data.recipes.index import RecipeIndex
from capsdist.data.recipes.source import Recipes
from capsdist.errors import DataError
from capsdist.storage.place import beside

__all__ = ["check_num_classes", "check_num_labels", "check_split", "verify_split"]


def check_split(
    folder: str | os.PathLike[str],
    *,
    image_shape: Sequence[int | None] | None = None,
    num_classes: int | None = None,
    crop: int | tuple[int, int] = 0,
    remedy: str = "",
) -> SourceIndex:
    """Check a split before a run and return its index.

    A local split is read wholly; of recipes, the split that they are made of. Of one on S3, which may be
    large, everything is checked that takes no download: access, the index, presence and size of every shard
    by listing them, the number of classes; checksums and labels are compared when a shard enters the cache,
    and damage stops the run there.
    `image_shape` is what stored images must be, (C, H, W), None for any; `crop` the side, or height and
    width, in pixels that they must have at least; `num_classes` the classes of the network; `remedy` what an
    error about missing or damaged files tells the user to do, usually the packing command.

    Raises:
        DataError: everything that `read_index` and `Split` raise; a wrong image shape; too many classes.
            A place on S3 that cannot be used is named in under 10 seconds.
    """
    place = SplitFolder(folder)
    place.check_access(remedy or "pack it (capsdist pack)")
    split = open_split(folder, remedy=remedy)
    index = split.index
    _check_shape(index, tuple(image_shape or (None, None, None)), crop, str(place))
    if num_classes is not None:
        check_num_classes(index, num_classes, str(place))
    if isinstance(split, Recipes):
        check_split(split.base_folder, remedy=remedy)
    elif isinstance(split, Split) and split.is_local:
        for number in range(len(split.index.shards)):
            split.check(number)
    elif isinstance(split, Split):
        place.check_sizes(split.index.shards, remedy)
    return index


def check_num_classes(index: SourceIndex, num_classes: int, place: str) -> None:
    """Check that a network of `num_classes` classes can learn the split `index` at `place`.

    Raises:
        DataError: the split has more.
    """
    if index.num_classes > num_classes:
        raise DataError(
            f"{place}: has {index.num_classes} classes, the model takes {num_classes}; "
            f"set model.num_classes to {index.num_classes}"
        )


def check_num_labels(index: SourceIndex, num_labels: int, place: str) -> None:
    """Check that a network of `num_labels` labels an image can learn the split `index` at `place`.

    Raises:
        DataError: images of the split have more.
    """
    most = (*index.field[index.label_name].shape, 1)[0]
    if most > num_labels:
        raise DataError(
            f"{place}: an image has up to {most} labels, the model takes {num_labels}; "
            f"set model.num_labels to {most}"
        )


def verify_split(folder: str | os.PathLike[str], *, remedy: str = "") -> SourceIndex:
    """Compare every stored shard with its sha256, and the headers of its members with the index.

    So is everything that `check_split` checks. A split on S3 is downloaded wholly, past the cache.

    Raises:
        DataError: as `check_split`; a header of the tar file that does not agree with the index.
    """
    index, place = check_split(folder, remedy=remedy), SplitFolder(folder)
    if isinstance(index, RecipeIndex):
        verify_split(beside(folder, index.base.split), remedy=remedy)
        return index
    assert isinstance(index, Index)
    for number, shard in enumerate(index.shards):
        content, path = place.stored(shard, remedy), place.path(shard)
        read_shard(content, index, number, path, remedy)
        _check_blocks(content, index, number, path, remedy)
        if (found := _members(content)) != (expected := _expected_members(index, number)):
            wrong = next((pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]), None)
            text = f"has {wrong[0]} where its index says {wrong[1]}" if wrong else "has other members"
            raise DataError(f"{path}: {text}; {remedy or KEPT}")
    return index


def _check_blocks(content: np.ndarray, index: Index, number: int, path: str, remedy: str) -> None:
    """Check the checksums of single blocks, which are read where a shard is not in memory."""
    for place, (block, span) in enumerate(zip(index.shards[number].blocks, index.spans(number), strict=True)):
        found = xxhash.xxh3_128_hexdigest(content[span.begin : span.end].data)
        if block.xxh3_128 not in ("", found):
            raise DataError(
                f"{path}: block {place} has another checksum than its index says; {remedy or KEPT}"
            )


def _members(content: np.ndarray) -> list[str]:
    """Return kind and place of every member of a tar file, by its own headers; a block has one key."""
    found: list[str] = []
    keys: list[str] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(content.tobytes()), mode="r:") as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                name = kind if key.isdecimal() and member.isfile() else member.name
                keys.append(key)
                found.append(_shown(keys.index(key), name, member.size, member.offset_data))
    except (tarfile.TarError, ValueError) as error:
        found.append(f"no tar header ({error})")
    return found


def _expected_members(index: Index, number: int) -> list[str]:
    names = [index.member_name(field) for field in index.fields]
    return [
        _shown(block * len(names), name, size, start)
        for block, span in enumerate(index.spans(number))
        for name, size, start in zip(names, span.sizes, span.starts, strict=True)
    ]


def _shown(first: int, name: str, size: int, start: int) -> str:
    """Return a member in words; first: number of the first member with its key."""
    return f"{name} with {size} bytes at byte {start} beside member {first}"


def _check_shape(
    index: SourceIndex, expected: tuple[int | None, ...], crop: int | tuple[int, int], place: str
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
