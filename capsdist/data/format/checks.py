"""Checks of a whole split: `check_split` before a run, `verify_split` after packing."""

from __future__ import annotations

import os
from collections.abc import Sequence

from capsdist.config.images import sides, size_text
from capsdist.data.format.folder import SplitFolder
from capsdist.data.format.source import Observe, Source, SourceIndex, open_split
from capsdist.errors import DataError

__all__ = ["check_num_classes", "check_num_labels", "check_split", "verify_split"]


def check_split(
    folder: str | os.PathLike[str],
    *,
    image_shape: Sequence[int | None] | None = None,
    num_classes: int | None = None,
    crop: int | tuple[int, int] = 0,
    decode_size: int | tuple[int, int] = 0,
    remedy: str = "",
) -> SourceIndex:
    """Check a split before a run and return its index.

    A local split is read wholly, one of encoded images up to 1 GiB, of recipes the split that they are made
    of. Of one on S3, which may be large,
    everything is checked that takes no download: access, the index, presence and size of every shard by
    listing them, the number of classes; checksums and labels are compared when a shard enters the cache, and
    damage stops the run there. `image_shape` is what stored images must be, (C, H, W), None for any; `crop`
    the side, or height and width, in pixels that they must have at least; `decode_size` what encoded images
    are decoded to, 0 for the stored size; `num_classes` the classes of the network; `remedy` what an error
    about missing or damaged files tells the user to do, usually the packing command.

    Raises:
        DataError: everything that `read_index` and `Split` raise; a wrong image shape; too many classes.
            A place on S3 that cannot be used is named in under 10 seconds.
    """
    source, place = _checked_access(folder, remedy, decode_size), str(SplitFolder(folder))
    index = source.index
    if image_shape or crop:
        _check_shape(index, tuple(image_shape or (None, None, None)), crop, place)
    if num_classes is not None:
        check_num_classes(index, num_classes, place)
    source.check_files()
    return index


def check_num_classes(index: SourceIndex, num_classes: int, place: str) -> None:
    """Check that a network of `num_classes` classes can learn the split `index` at `place`.

    Raises:
        DataError: the split has more.
    """
    if index.num_classes > num_classes:
        raise DataError(
            f"{place}: has {index.num_classes} classes, the model takes {num_classes}; "
            f"set --model.num-classes {index.num_classes}"
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
            f"set --model.num-labels {most}"
        )


def verify_split(
    folder: str | os.PathLike[str],
    *,
    decode_size: int | tuple[int, int] = 0,
    remedy: str = "",
    observe: Observe | None = None,
) -> SourceIndex:
    """Compare every stored shard with its sha256, and the headers of its members with the index.

    So is everything that `check_split` checks, and encoded images are decoded, to `decode_size` if it is
    given. A split on S3 is downloaded wholly, past the cache. `observe` gets the samples of each block of a
    shard that is right.

    Raises:
        DataError: as `check_split`; a header of the tar file that does not agree with the index.
    """
    source = _checked_access(folder, remedy, decode_size)
    source.verify_files(observe)
    return source.index


def _checked_access(
    folder: str | os.PathLike[str], remedy: str, decode_size: int | tuple[int, int] | None
) -> Source:
    place = SplitFolder(folder)
    place.check_access(remedy or "pack it (capsdist pack)")
    return open_split(folder, remedy=remedy, size=sides(decode_size) if decode_size else None)


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
