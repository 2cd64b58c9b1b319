"""Image files of any size and format as samples: found in folders or listed in a table, decoded when read."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capsdist.data.decoding import decode_into
from capsdist.data.format.order import permutation
from capsdist.data.format.packed import IMAGE, LABEL, LABELS
from capsdist.data.format.samples import FieldType
from capsdist.errors import DataError

__all__ = [
    "ALIASES", "SPLITS", "ImageFile", "ImageFiles", "divided", "files_in_folders", "files_in_table",
    "fingerprint_of", "read_image_file",
]  # fmt: skip

_MAX_BYTES = 1 << 30  # of a file
SPLITS = ("train", "validation", "test")
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}
"""Other names of a split."""


@dataclass(frozen=True)
class ImageFile:
    """A file, the names of its classes, and the split that it belongs to, empty if that is not given."""

    path: Path
    classes: tuple[str, ...]
    split: str = ""


def files_in_folders(root: Path) -> list[ImageFile]:
    """Return the image files below `root`: a sub-folder for each class, or for each split with those in it.

    Which files are images is decided by their suffix, as Pillow knows it; hidden files are left out.

    Raises:
        DataError: there is no such folder, or it has no sub-folder with images.
    """
    from PIL import Image

    if not root.is_dir():
        raise DataError(f"{root}: is not a folder; give one with a sub-folder of images for each class")
    Image.init()
    suffixes = set(Image.registered_extensions())
    splits = {path: ALIASES.get(path.name, path.name) for path in _folders(root)}
    by_split = bool(splits) and set(splits.values()) <= set(SPLITS) and "train" in splits.values()
    found = []
    for top, split in splits.items() if by_split else [(root, "")]:
        for folder in _folders(top):
            paths = (path for path in sorted(folder.rglob("*")) if not path.name.startswith("."))
            for path in paths:
                if path.suffix.lower() in suffixes and path.is_file():
                    found.append(ImageFile(path, (folder.name,), split))
    if not found:
        raise DataError(f"{root}: has no sub-folder with images; make one for each class, or give --table")
    return found


def files_in_table(table: Path, root: Path) -> list[ImageFile]:
    """Return the image files that a CSV file lists, with the columns file, label and, if wanted, split.

    file: path relative to `root`; label: name of the class, or of several with ";" between them.

    Raises:
        DataError: a column or a value is missing, a file lies outside `root`, or a split is unknown.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as CSV ({error}); give a UTF-8 text file") from None
    if not rows or not {"file", "label"} <= rows[0].keys():
        raise DataError(f"{table}: has no columns file and label in its first line; add them")
    found = []
    for number, row in enumerate(rows, 2):
        name, labels, split = (str(row.get(column) or "").strip() for column in ("file", "label", "split"))
        classes = tuple(label.strip() for label in labels.split(";") if label.strip())
        split = ALIASES.get(split, split)
        path = root / name
        if not name or not classes:
            raise DataError(f"{table}: line {number} has no {'label' if name else 'file'}; complete it")
        if split and split not in SPLITS:
            raise DataError(f"{table}: line {number}: split {split!r} is none of {', '.join(SPLITS)}")
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise DataError(f"{table}: line {number}: {name} lies outside {root}; give a path inside it")
        found.append(ImageFile(path, classes, split))
    return found


def divided(
    files: Sequence[ImageFile], *, validation: float, test: float, seed: int = 0
) -> dict[str, list[ImageFile]]:
    """Return the files by split, in mixed order; those without a split are divided among all three.

    validation, test: shares of the files of each set of classes, at least one file where there are three.

    Raises:
        DataError: a split that is wanted has no file.
    """
    groups: dict[tuple[str, ...], list[ImageFile]] = {}
    splits: dict[str, list[ImageFile]] = {split: [] for split in SPLITS}
    for file in files:
        if file.split:
            splits[file.split].append(file)
        else:
            groups.setdefault(file.classes, []).append(file)
    for classes, members in sorted(groups.items()):
        mixed = [members[place] for place in permutation(len(members), "divide", seed, *classes)]
        few = len(members) >= 3
        num_test = max(round(test * len(members)), int(few and test > 0))
        num_validation = max(round(validation * len(members)), int(few and validation > 0))
        splits["test"] += mixed[:num_test]
        splits["validation"] += mixed[num_test : num_test + num_validation]
        splits["train"] += mixed[num_test + num_validation :]
    wanted = ["train", *(["validation"] if validation else []), *(["test"] if test else [])]
    if empty := [split for split in wanted if not splits[split]]:
        raise DataError(f"split {empty[0]} has no image of {len(files)}; give more images or another share")
    return {
        split: [members[place] for place in permutation(len(members), "order", seed, split)]
        for split, members in splits.items()
        if members
    }


def fingerprint_of(files: Sequence[ImageFile], *options: object) -> str:
    """Return a digest of the paths, sizes, times and classes of `files`, and of `options`."""
    digest = hashlib.sha256(repr(options).encode())
    for file in files:
        status = file.path.stat() if file.path.exists() else None
        times = (status.st_size, status.st_mtime_ns) if status else None
        digest.update(repr((str(file.path), file.classes, times)).encode())
    return digest.hexdigest()


class ImageFiles:
    """Image files as samples: decoded to one size in threads when they are read.

    classes: names by label; num_labels: labels that an image has at most, 1 for the field `label`. `left_out`
    is called as left_out(path, reason) with a file that cannot be read, which then is no sample; strict: it
    raises.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        classes: Sequence[str],
        *,
        size: tuple[int, int],
        channels: int,
        num_labels: int,
        left_out: Callable[[Path, str], None],
        strict: bool = False,
    ) -> None:
        self._files, self._left_out, self._strict = list(files), left_out, strict
        self._number = {name: label for label, name in enumerate(classes)}
        self._num_labels = num_labels
        self._label = LABEL if num_labels == 1 else LABELS
        self.fields: Mapping[str, FieldType] = {
            IMAGE: FieldType(np.dtype(np.uint8), (channels, *size)),
            self._label: FieldType(np.dtype(np.int64), () if num_labels == 1 else (num_labels,)),
        }

    def __len__(self) -> int:
        return len(self._files)

    @property
    def fingerprint(self) -> str:
        """Digest of the paths, sizes, times and classes of all files."""
        return fingerprint_of(self._files, self.fields, self._number, self._strict)

    def read(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Return the files start .. stop - 1 that can be read, decoded: see `Samples`."""
        channels, height, width = self.fields[IMAGE].shape
        files = self._files[start:stop]
        pixels = np.empty((len(files), height, width, channels), np.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            reasons = list(pool.map(_decode, (file.path for file in files), pixels))
        good = [number for number, reason in enumerate(reasons) if not reason]
        for file, reason in zip(files, reasons, strict=True):
            if reason:
                self._left_out(file.path, reason)
        labels = self._labels(files[number] for number in good)
        kept = pixels if len(good) == len(files) else pixels[good]
        images = np.ascontiguousarray(kept.transpose(0, 3, 1, 2))
        return {IMAGE: images, self._label: labels}

    def _labels(self, files: Iterable[ImageFile]) -> np.ndarray:
        rows = [[self._number[name] for name in file.classes] for file in files]
        labels = np.full((len(rows), self._num_labels), -1, np.int64)
        for row, numbers in zip(labels, rows, strict=True):
            row[: len(numbers)] = numbers
        return labels[:, 0] if self._num_labels == 1 else labels


def _decode(path: Path, pixels: np.ndarray) -> str:
    """Decode a file into `pixels`; return why it cannot be read, empty if it was."""
    return read_image_file(path, _MAX_BYTES, lambda content: decode_into(content, pixels))


def read_image_file(path: Path, max_bytes: int, use: Callable[[bytes], None]) -> str:
    """Call `use` with the content of a file of up to `max_bytes`; return why it is no image, "" if it is."""
    try:
        if path.stat().st_size > max_bytes:
            return f"has more than {max_bytes:,} bytes"
        use(path.read_bytes())
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except DataError as error:
        return f"is no image ({error})"
    return ""


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
