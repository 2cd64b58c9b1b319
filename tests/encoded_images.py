"""Random image files of odd sizes, and splits made of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from capsdist.data.decoding import decode_into, image_size
from capsdist.data.encoded.files import EncodedSample
from capsdist.data.encoded.index import EncodedIndex
from capsdist.data.encoded.write import write_encoded
from capsdist.data.format.fields import Field

CLASSES = ("ant", "bee", "cat", "dog", "elk")
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def image_file(draws: np.random.Generator, size: tuple[int, int], suffix: str = "jpg") -> bytes:
    """A smooth random image as a file."""
    coarse = Image.fromarray(draws.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    stream = io.BytesIO()
    coarse.resize(size[::-1], Image.Resampling.BILINEAR).save(stream, FORMATS[suffix])
    return stream.getvalue()


class Images:
    """Random image files as samples, with the label number % 5 and `turn`, a further field, if wanted."""

    fingerprint = "images"

    def __init__(
        self, num: int, *, seed: int = 0, side: int = 0, suffixes=tuple(FORMATS), turns=False
    ) -> None:
        draws = np.random.default_rng(seed)
        self.files, self.reads = [], 0
        self.suffixes = [suffixes[number % len(suffixes)] for number in range(num)]
        for suffix in self.suffixes:
            high, wide = (side, side) if side else draws.integers(3, 41, 2)
            self.files.append(image_file(draws, (int(high), int(wide)), suffix))
        turn = (Field("turn", "<f4", (2,)),) if turns else ()
        self.fields = (Field("label", "<i8"), *turn)

    @property
    def sizes(self) -> np.ndarray:
        return np.array([len(file) for file in self.files])

    def values(self, number: int) -> dict[str, int | np.ndarray]:
        values = {"label": number % len(CLASSES), "turn": np.float32([number / 7, -number])}
        return {field.name: values[field.name] for field in self.fields}

    def read(self, start: int, stop: int) -> Iterator[EncodedSample]:
        for number in range(start, stop):
            self.reads += 1
            file = self.files[number]
            yield EncodedSample(file, self.suffixes[number], image_size(file), self.values(number))

    def decoded(self, ids: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """The reference: one after the other by the decoder alone, uint8 [n, C, H, W]."""
        channels, height, width = shape
        images = np.empty((len(ids), height, width, channels), np.uint8)
        for row, number in enumerate(ids):
            decode_into(self.files[number], images[row])
        return images.transpose(0, 3, 1, 2)


def write(folder: Path | str, images: Images, **options: object) -> EncodedIndex:
    return write_encoded(folder, images, **{"classes": CLASSES, "shard_bytes": 6000, **options})
