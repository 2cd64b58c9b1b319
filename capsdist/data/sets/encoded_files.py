"""Image files as encoded samples: stored as they are, once it is sure that they can be decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from capsdist.data.encoded.files import EncodedSample, checked_sample
from capsdist.data.encoded.tars import IMAGE_SUFFIXES, MAX_IMAGE_BYTES
from capsdist.data.format.fields import Field
from capsdist.data.format.packed import LABEL, LABELS
from capsdist.data.sets.image_files import ImageFile, fingerprint_of, read_image_file

__all__ = ["EncodedFiles"]

_AT_ONCE = 64  # files in memory


class EncodedFiles:
    """Image files as `EncodedSamples`. classes, num_labels, left_out, strict: as of `ImageFiles`."""

    def __init__(
        self,
        files: Sequence[ImageFile],
        classes: Sequence[str],
        *,
        num_labels: int,
        left_out: Callable[[Path, str], None],
        strict: bool = False,
    ) -> None:
        self._files, self._left_out, self._strict = list(files), left_out, strict
        self._number = {name: label for label, name in enumerate(classes)}
        self._num_labels = num_labels
        self.fields = (Field(LABEL, "<i8") if num_labels == 1 else Field(LABELS, "<i8", (num_labels,)),)

    @property
    def fingerprint(self) -> str:
        """Digest of the paths, sizes, times and classes of all files."""
        return fingerprint_of(self._files, "encoded", self.fields, self._number, self._strict)

    @property
    def sizes(self) -> np.ndarray:
        """Size in bytes of every file, 0 for one that is missing: int64 [n]."""
        paths = (file.path for file in self._files)
        return np.array([path.stat().st_size if path.exists() else 0 for path in paths], np.int64)

    def read(self, start: int, stop: int) -> Iterator[EncodedSample]:
        """Yield the files start .. stop - 1 that can be decoded."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for first in range(start, stop, _AT_ONCE):
                files = self._files[first : min(first + _AT_ONCE, stop)]
                for file, read in zip(files, pool.map(self._read, files), strict=True):
                    if isinstance(read, str):
                        self._left_out(file.path, read)
                    else:
                        yield read

    def _read(self, file: ImageFile) -> EncodedSample | str:
        """Return the sample of `file`, or why it is none."""
        suffix = file.path.suffix[1:].lower()
        if suffix not in IMAGE_SUFFIXES:
            return f"has the suffix .{suffix}, which other readers do not know; convert it to JPEG or PNG"
        found: list[EncodedSample] = []

        def take(content: bytes) -> None:
            found.append(checked_sample(content, suffix, self._values(file)))

        return read_image_file(file.path, MAX_IMAGE_BYTES, take) or found[0]

    def _values(self, file: ImageFile) -> dict[str, int | float | np.ndarray]:
        numbers = [self._number[name] for name in file.classes]
        if self._num_labels == 1:
            return {LABEL: numbers[0]}
        labels = np.full(self._num_labels, -1, np.int64)
        labels[: len(numbers)] = numbers
        return {LABELS: labels}
