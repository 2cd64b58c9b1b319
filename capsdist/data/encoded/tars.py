"""Find the samples of a tar file of the webdataset format: image files and the members that label them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO

import xxhash

from capsdist.data.format.tar_headers import TarDamagedError, tar_headers
from capsdist.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "MAX_IMAGE_BYTES", "Found", "label_of", "samples_in_tar"]

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"})
"""What follows the last dot in the name of a member with an image."""
MAX_IMAGE_BYTES = 1 << 28
"""Limit of an encoded image; larger ones are passed over."""

_LABEL_SUFFIXES = ("cls", "json", "txt")
_MAX_LABEL_BYTES = 1 << 20
_MAX_LABEL = (1 << 31) - 1
_MAX_LABEL_LETTERS = 1000


@dataclass(frozen=True)
class Found:
    """A sample of a tar file: its key, its image, where that lies, and its label members by suffix."""

    key: str
    image: bytes
    offset: int
    labels: Mapping[str, bytes]

    @property
    def place(self) -> tuple[int, int, int]:
        """What a table says of the image: offset and size in bytes, xxh3_64."""
        return self.offset, len(self.image), xxhash.xxh3_64_intdigest(self.image)


@dataclass
class _Group:
    """The members with one key, as far as they are read."""

    key: str
    images: list[tuple[bytes, int]] = field(default_factory=list)
    labels: dict[str, bytes] = field(default_factory=dict)


def samples_in_tar(file: IO[bytes], where: str, warn: Callable[[str], None]) -> Iterator[Found]:
    """Yield the samples of a tar file of the webdataset format, in order; `where` names it in messages.

    Members that follow each other and have the same name up to the first dot of its last part are one sample.
    One without exactly one image or without a label is passed over, and `warn` is told.

    Raises:
        DataError: a header is damaged, or the file ends inside a member.
    """
    group = _Group("")
    for name, offset, content in _members(file, where):
        folder, _, base = name.rpartition("/")
        stem, _, suffixes = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if key != group.key:
            yield from _finished(group, where, warn)
            group = _Group(key)
        suffix = suffixes.rpartition(".")[2].lower()
        if suffix in IMAGE_SUFFIXES:
            # Of several images, which are passed over, only their number is of use.
            group.images.append((b"" if group.images else content, offset))
        elif suffix in _LABEL_SUFFIXES:
            group.labels[suffix] = content
    yield from _finished(group, where, warn)


def label_of(found: Found, label_key: str) -> str | int:
    """Return the class of a sample: the number in `cls`, the value of `label_key` in `json`, or `txt`.

    Raises:
        DataError: it holds no label.
    """
    try:
        if "cls" in found.labels:
            value = int(found.labels["cls"].decode("ascii"))
        elif "json" in found.labels:
            value = json.loads(found.labels["json"])[label_key]
        else:
            value = found.labels["txt"].decode().strip()
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"{label_key} is a {type(value).__name__}")
        if isinstance(value, str) and len(value) > _MAX_LABEL_LETTERS:
            raise ValueError(f"its label has {len(value):,} letters, at most {_MAX_LABEL_LETTERS:,} are read")
        if value == "" or (isinstance(value, int) and not 0 <= value <= _MAX_LABEL):
            raise ValueError(f"its label is {str(value)[:40]!r}")
        return value
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise DataError(f"sample {found.key!r} has no label that can be read ({reason})") from None


def _members(file: IO[bytes], where: str) -> Iterator[tuple[str, int, bytes]]:
    """Yield name, place and content of the members that are image or label files."""
    try:
        for member in tar_headers(file):
            suffix = member.name.rpartition(".")[2].lower()
            limit = MAX_IMAGE_BYTES if suffix in IMAGE_SUFFIXES else _MAX_LABEL_BYTES
            wanted = suffix in IMAGE_SUFFIXES or suffix in _LABEL_SUFFIXES
            if not (wanted and member.isreg() and not member.issparse() and member.size <= limit):
                continue
            file.seek(member.offset_data)
            content = file.read(member.size)
            if len(content) != member.size:
                raise TarDamagedError(f"ends inside {member.name!r}")
            yield member.name, member.offset_data, content
    except TarDamagedError as error:
        raise DataError(f"{where}: {error}; get the file again") from None


def _finished(group: _Group, where: str, warn: Callable[[str], None]) -> Iterator[Found]:
    if len(group.images) == 1 and group.labels:
        [(image, offset)] = group.images
        yield Found(group.key, image, offset, group.labels)
    elif group.images or group.labels:
        what = "no label" if len(group.images) == 1 else f"{len(group.images)} images"
        warn(f"{where}: sample {group.key!r} has {what} and is passed over")
