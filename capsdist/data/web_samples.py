"""Samples of foreign tar files by the library webdataset: which members are read, and what they mean.

Members are `KEY.SUFFIX`; those of one key, one after the other, are a sample. Only image files and labels are
read (`IMAGES`, `LABELS`); no other member is looked into, pickles and the like least of all.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO, cast

import numpy as np
from webdataset.filters import shuffle
from webdataset.gopen import gopen_curl
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import SimpleShardList
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from capsdist.data.decoding import decode_into
from capsdist.errors import DataError
from capsdist.storage import open_folder

__all__ = ["IMAGES", "LABELS", "MAX_TAR_BYTES", "Sample", "decode_sample", "read_labels", "tar_samples"]

Sample = Mapping[str, Any]
"""Contents by suffix, and as strings `__key__` and `__url__`: the name in the tar file, and that file."""

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "pgm", "ppm", "tif", "tiff")
"""Suffixes of image files, the first that a sample has is read."""
LABELS = ("cls", "json")
"""Suffixes of labels: decimal numbers, or JSON."""
MAX_TAR_BYTES = 4 << 30
"""Limit of a tar file on S3, which is read whole."""

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_MAX_LABEL_BYTES = 1 << 20
_FIRST = 1024  # samples in the shuffle buffer before the first is taken


def tar_samples(urls: Sequence[str], *, window: int, rng: random.Random) -> Iterator[Sample]:
    """Yield the samples of the tar files `urls`, shuffled by a buffer of `window` samples.

    Raises:
        DataError: a tar file cannot be read, is cut or has a name twice.
    """
    opened: list[str] = []
    pipeline = DataPipeline(
        SimpleShardList(list(urls)),
        partial(_opened, opened=opened),
        partial(tar_file_expander, select_files=_is_read),
        group_by_keys,
        shuffle(window, initial=min(window, _FIRST), rng=rng),
    )
    try:
        yield from pipeline
    except DataError:
        raise
    except Exception as error:  # the library raises nearly anything, with its own state as arguments
        reason = str(error.args[0] if error.args else "").partition(" @ ")[0] or type(error).__name__
        if status := re.search(r"exit (\d+) \(read\)", reason):
            reason = f"curl ended with status {status[1]}"
        raise DataError(
            f"{opened[-1]}: cannot be read ({_line(reason)}); repair it or leave it out"
        ) from None


def read_labels(sample: Sample, *, num_classes: int, num_labels: int) -> list[int]:
    """Return the labels of a sample, of its `cls` or `json`: one, or up to `num_labels` different ones.

    `cls` has decimal numbers with spaces or commas between them. `json` is a number or a list, or has it
    as `label`, `labels` or `cls`.

    Raises:
        DataError: there is no label, too many, or one that is not below `num_classes`.
    """
    suffix = next((suffix for suffix in LABELS if suffix in sample), None)
    if suffix is None:
        raise DataError(f"{_name(sample)} has no label; add a member .cls or .json, or leave it out")
    content = sample[suffix]
    if len(content) > _MAX_LABEL_BYTES:
        raise DataError(f"{_name(sample)}.{suffix} has {len(content):,} bytes; write only the label")
    try:
        labels = _numbers(content) if suffix == "cls" else _of_json(content)
    except (ValueError, RecursionError):
        raise DataError(
            f"{_name(sample)}.{suffix}: {content[:40]!r} holds no label; write a number from 0 on"
        ) from None
    if not 1 <= len(labels) <= num_labels or len(set(labels)) < len(labels):
        rule = "must be 1 label" if num_labels == 1 else f"must be 1 to {num_labels} different labels"
        raise DataError(
            f"{_name(sample)}.{suffix}: {labels[:10]} {rule}; correct it or set --model.num-labels"
        )
    for label in labels:
        if not 0 <= label < num_classes:
            raise DataError(
                f"{_name(sample)}.{suffix}: label {label} is not within 0 to {num_classes - 1}; "
                "set --model.num-classes accordingly"
            )
    return labels


def decode_sample(sample: Sample, pixels: np.ndarray) -> None:
    """Decode the image of a sample into `pixels`, contiguous uint8 [H, W, C], scaled and cut to that size.

    Raises:
        DataError: there is no image, or it cannot be decoded safely; see `decode_into`.
    """
    suffix = next((suffix for suffix in IMAGES if suffix in sample), None)
    if suffix is None:
        formats = ", ".join(IMAGES)
        raise DataError(f"{_name(sample)} has no image; those of {formats} are read: add one or leave it out")
    try:
        decode_into(sample[suffix], pixels)
    except DataError as error:
        raise DataError(f"{_name(sample)}.{suffix}: {error}; repair it or leave it out") from None


def _opened(tars: Iterator[dict[str, Any]], *, opened: list[str]) -> Iterator[dict[str, Any]]:
    """Open each tar file and note it in `opened`.

    Not by webdataset's `gopen`, which the environment can make run commands.
    """
    for tar in tars:
        opened[:] = [tar["url"]]
        stream = _open(tar["url"])
        try:
            yield {**tar, "stream": _Plain(stream)}
        except GeneratorExit:  # the rest is not wanted: how curl ends says nothing
            with contextlib.suppress(OSError):
                stream.close()
            raise
        stream.close()  # raises where curl has failed


class _Plain:
    """A stream that is read as it is: tarfile would unpack a compressed one without limit."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._begun = stream, False

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes.

        Raises:
            OSError: curl has failed.
            ValueError: there is nothing, or the first bytes are those of a compressed file.
        """
        content = self._stream.read(size)
        if not self._begun and not content:
            self._stream.close()
            raise ValueError("it is empty")
        if not self._begun and content.startswith(_COMPRESSED):
            raise ValueError("it is compressed: unpack it first")
        self._begun = True
        return content


def _open(url: str) -> BinaryIO:
    scheme, mark, rest = url.partition("://")
    if mark and scheme in ("http", "https"):
        try:
            return cast(BinaryIO, gopen_curl(url))
        except FileNotFoundError:
            raise DataError(f"{url}: the program curl reads it and is not there; install curl") from None
    if mark and scheme == "s3":
        address, _, options = url.partition("?")
        folder, _, name = address.rpartition("/")
        place = open_folder(f"{folder}?{options}" if options else folder)
        content = place.read(name, max_bytes=MAX_TAR_BYTES)
        if content is None:
            raise DataError(f"{url}: is not there; correct data.urls")
        return io.BytesIO(content)
    path = rest if mark else url
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; correct data.urls") from None


def _is_read(name: str) -> bool:
    return (base_plus_ext(name)[1] or "").lower() in (*IMAGES, *LABELS)


def _numbers(content: bytes) -> list[int]:
    words = content.decode("ascii").replace(",", " ").split()
    if not all(word.isdigit() and len(word) < 19 for word in words):
        raise ValueError
    return [int(word) for word in words]


def _of_json(content: bytes) -> list[int]:
    value = json.loads(content)
    if isinstance(value, dict):
        value = next((value[name] for name in ("label", "labels", "cls") if name in value), None)
    values = value if isinstance(value, list) else [value]
    labels = [label for label in values if type(label) is int]
    if len(labels) < len(values):
        raise ValueError
    return labels


def _name(sample: Sample) -> str:
    return f"{sample['__url__']}: {_line(sample['__key__'])}"


def _line(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text.partition("\n")[0])[:200]
