"""Splits of every format whose images and labels say the id of their sample."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from capsdist.data import write_split
from capsdist.data.encoded.files import EncodedSample
from capsdist.data.encoded.register import index_tars
from capsdist.data.encoded.write import write_encoded
from capsdist.data.format.fields import Field
from capsdist.data.format.source import open_split
from version_1 import write_version_1

__all__ = ["FORMATS", "Numbered", "images_of", "labels_of", "turns_of", "write_numbered"]

CLASSES = ("ant", "bee", "cat", "dog", "elk")
SHAPE = (3, 4, 5)
FORMATS = {
    "version 1": {},
    "raw": {},
    "raw, fields": {"fields": ("turn",)},
    "zstd": {"compression": "zstd"},
    "zstd, labels, fields": {"compression": "zstd", "labels": 3, "fields": ("turn",)},
    "png": {},
    "png, labels, fields": {"labels": 3, "fields": ("turn",)},
    "foreign png": {},
}
"""Kinds of splits, and what is special about them."""


@dataclass(frozen=True)
class Numbered:
    """A split on disk, the number of samples in each of its shards, its digest, and labels an image."""

    folder: Path
    sizes: tuple[int, ...]
    digest: str
    num_labels: int
    has_turn: bool


def images_of(ids: np.ndarray) -> np.ndarray:
    """Images uint8 [n, C, H, W]: the first four bytes are the id, the others are mixed from it."""
    mixed = (ids[:, None] + 1) * 2654435761 * (np.arange(np.prod(SHAPE)) + 1) >> 8
    images = mixed.astype(np.uint8)
    images[:, :4] = ids.astype("<u4")[:, None].view(np.uint8)
    return images.reshape(-1, *SHAPE)


def labels_of(ids: np.ndarray, num_labels: int) -> np.ndarray:
    """Labels int64 [n], or [n, num_labels] with -1 where there are fewer."""
    if not num_labels:
        return ids * 7 % len(CLASSES)
    places = np.arange(num_labels)
    labels = (ids[:, None] * 7 + places) % len(CLASSES)
    return np.where(places <= ids[:, None] % num_labels, labels, -1)


def turns_of(ids: np.ndarray) -> np.ndarray:
    """A further field, float32 [n, 2]."""
    return np.stack([ids / 7, -ids], 1).astype(np.float32)


def write_numbered(folder: Path, kind: str, num: int, block_size: int, shard_size: int) -> Numbered:
    """Write `num` samples in the format `kind`."""
    special, ids = FORMATS[kind], np.arange(num)
    num_labels = special.get("labels", 0)
    images, labels = images_of(ids), labels_of(ids, num_labels)
    has_turn = "fields" in special
    if kind == "version 1":
        write_version_1(folder, images, labels, list(CLASSES), block_size=block_size, shard_size=shard_size)
    elif kind == "foreign png":
        write_tars(folder, images, labels, shard_size)
        index_tars(str(folder), classes=CLASSES)
    elif kind.startswith("png"):
        size = max(len(png) for png in map(png_of, images))
        samples = NumberedFiles(num, num_labels, has_turn)
        write_encoded(folder, samples, classes=CLASSES, shard_bytes=shard_size * size)
    else:
        write_split(
            folder, images, labels, classes=CLASSES, fields={"turn": turns_of(ids)} if has_turn else None,
            compression=special.get("compression", "none"), block_size=block_size, shard_size=shard_size,
        )  # fmt: skip
    index = open_split(folder).index
    sizes = tuple(np.diff(index.shard_starts).tolist())
    assert sum(sizes) == num
    return Numbered(folder, sizes, index.digest, num_labels, has_turn)


def png_of(image: np.ndarray) -> bytes:
    """An image uint8 [C, H, W] as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()


@dataclass(frozen=True)
class NumberedFiles:
    """The samples as PNG files; an `EncodedSamples`."""

    num: int
    num_labels: int
    has_turn: bool
    fingerprint = ""

    @property
    def fields(self) -> tuple[Field, ...]:
        label = Field("labels", "<i8", (self.num_labels,)) if self.num_labels else Field("label", "<i8")
        return (label, Field("turn", "<f4", (2,))) if self.has_turn else (label,)

    @property
    def sizes(self) -> np.ndarray:
        return np.array([len(png_of(image)) for image in images_of(np.arange(self.num))])

    def read(self, start: int, stop: int) -> Iterator[EncodedSample]:
        ids = np.arange(start, stop)
        rows = zip(images_of(ids), labels_of(ids, self.num_labels), turns_of(ids), strict=True)
        for image, label, turn in rows:
            values = {self.fields[0].name: label, "turn": turn}
            yield EncodedSample(png_of(image), "png", SHAPE[1:], values)


def write_tars(folder: Path, images: np.ndarray, labels: np.ndarray, shard_size: int) -> None:
    """Write tar files of the webdataset format as another program would."""
    folder.mkdir(parents=True)
    for start in range(0, len(images), shard_size):
        with tarfile.open(folder / f"photos-{start:05d}.tar", "w") as tar:
            for number in range(start, min(start + shard_size, len(images))):
                content = {"png": png_of(images[number]), "cls": str(labels[number]).encode()}
                for suffix, data in content.items():
                    member = tarfile.TarInfo(f"some/{number:05d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
