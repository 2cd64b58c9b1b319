"""EMNIST (Cohen et al. 2017): handwritten letters and digits of 28x28, in the parts letters and balanced.

The original files hold every image transposed, and number letters from 1: here images are upright and
labels start at 0. The archive gzip.zip holds all parts as idx files packed by gzip.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from capsdist.data.format.samples import ArraySamples, Samples
from capsdist.data.sets.archives import zip_member
from capsdist.data.sets.idx import check_counts, image_label_pair, parse_idx
from capsdist.data.sets.originals import Original, content, download, find, open_checked, unpacked
from capsdist.data.sets.spec import DatasetSpec
from capsdist.errors import DataError

__all__ = ["BALANCED", "EMNIST_BALANCED", "EMNIST_LETTERS", "LETTERS", "EmnistPart", "load_emnist"]

ARCHIVE = Original(
    "gzip.zip", "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e", packed=True
)
_MIRRORS = (
    "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
    "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/gzip.zip",
)
_SUBFOLDERS = ("", "gzip", "raw", "EMNIST/raw")  # the last one as torchvision lays them out
_Read: TypeAlias = Callable[[str], tuple[bytes, object] | None]


@dataclass(frozen=True)
class EmnistPart:
    """A part of EMNIST: its name in names of files, classes, first label, and images a class may have.

    mapping: codes of characters, by class, as the part's mapping file gives them.
    """

    name: str
    classes: tuple[str, ...]
    first_label: int
    counts: Mapping[str, tuple[int, ...]]

    @property
    def mapping(self) -> list[tuple[int, int]]:
        """Label and code of the (upper-case) character of every class, as in the part's mapping file."""
        return [(label, ord(name[0])) for label, name in enumerate(self.classes, self.first_label)]


# The first release had 88,800 + 14,800 letters, fewer of those whose upper and lower case look alike.
LETTERS = EmnistPart("letters", tuple(string.ascii_uppercase), 1, {"train": (4800, 2400), "test": (800, 400)})
# Lower-case letters that look like their upper case share its class.
BALANCED = EmnistPart(
    "balanced", tuple(string.digits + string.ascii_uppercase + "abdefghnqrt"), 0,
    {"train": (2400,), "test": (400,)},
)  # fmt: skip


def load_emnist(source: Path, part: EmnistPart, archive: Original = ARCHIVE) -> dict[str, Samples]:
    """Return the splits of `part`: image uint8 (1, 28, 28), upright, and label int64 from 0.

    source: gzip.zip, whose checksum is compared, or a folder that holds it or the idx files, whose structure
    is checked. Where the part's mapping file is there, it must agree with the names of the classes.

    Raises:
        DataError: a file that is missing, damaged or not the original.
    """
    if source.is_dir() and (source / archive.name).is_file():
        source = source / archive.name
    if source.is_dir():
        return _splits(part, source, partial(_from_folder, source))
    with open_checked(source, archive) as file:

        def read(name: str) -> tuple[bytes, object] | None:
            packed = zip_member(file, name if name.endswith(".txt") else f"{name}.gz", source)
            return None if packed is None else (unpacked(packed, f"{source}/{name}"), f"{source}/{name}")

        return _splits(part, source, read)


def _from_folder(folder: Path, name: str) -> tuple[bytes, object] | None:
    if name.endswith(".txt") and not any((folder / below / name).is_file() for below in _SUBFOLDERS):
        return None
    path = find(folder, name, _SUBFOLDERS)
    return content(path), path


def _splits(part: EmnistPart, source: Path, read: _Read) -> dict[str, Samples]:
    """Return the splits of `part`; read: content and place of a file of `source`, None if there is none."""
    if found := read(f"emnist-{part.name}-mapping.txt"):
        _check_mapping(found[0], part, found[1])
    return {split: _split(part, split, source, read) for split in ("train", "test")}


def _split(part: EmnistPart, split: str, source: Path, read: _Read) -> ArraySamples:
    arrays, where = [], None
    for kind in ("images-idx3", "labels-idx1"):
        name = f"emnist-{part.name}-{split}-{kind}-ubyte"
        if (found := read(name)) is None:
            raise DataError(f"{source}: holds no {name}.gz; give gzip.zip of EMNIST or a folder of its files")
        data, where = found
        arrays.append(parse_idx(data, where))
    images, labels = image_label_pair(arrays[0], arrays[1], where)
    labels = labels - part.first_label
    check_counts(images, labels, len(part.classes), part.counts[split], where)
    return ArraySamples(image=np.ascontiguousarray(images.swapaxes(2, 3)), label=labels)


def _check_mapping(data: bytes, part: EmnistPart, where: object) -> None:
    """Check lines of label, code of the character, and for letters the code of its lower case."""
    try:
        lines = data.decode("ascii").splitlines()
        rows = [tuple(map(int, line.split()[:2])) for line in lines if line.strip()]
    except ValueError as error:
        raise DataError(f"{where}: maps no labels to characters ({error}); get the original") from None
    if rows != part.mapping:
        wrong = next(iter(set(rows) ^ set(part.mapping)), rows[:1])
        raise DataError(f"{where}: names other classes, see label and code {wrong}; get the original")


def _load(part: EmnistPart, source: Path | None, folder: Path, command: str) -> dict[str, Samples]:
    if source:
        return load_emnist(source, part)
    archive = folder.with_name("emnist") / ARCHIVE.name  # both parts take it from there
    manual = f"get gzip.zip (562 MB) from {_MIRRORS[0]}, then run: {command} --source gzip.zip"
    download(_MIRRORS, archive, lambda path: load_emnist(path, part), manual=manual)
    return load_emnist(archive, part)


_SOURCE = (
    "gzip.zip of EMNIST, whose checksum is compared, or a folder that holds it or its unpacked idx files, "
    "whose structure is checked; default: download gzip.zip (562 MB)."
)
EMNIST_LETTERS = DatasetSpec(
    name="emnist_letters",
    licence="none given; derived from NIST Special Database 19, cite Cohen et al. 2017",
    title="EMNIST letters (26 classes of 28x28, both cases of a letter in one) from its original idx files",
    classes=LETTERS.classes,
    load=partial(_load, LETTERS),
    source=_SOURCE,
)
EMNIST_BALANCED = DatasetSpec(
    name="emnist_balanced",
    licence="none given; derived from NIST Special Database 19, cite Cohen et al. 2017",
    title="EMNIST balanced (112,800 + 18,800 characters of 28x28, 47 classes) from its original idx files",
    classes=BALANCED.classes,
    load=partial(_load, BALANCED),
    source=_SOURCE,
)
