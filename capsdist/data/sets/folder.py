"""Images of your own as a data set: a sub-folder for each class, or a table of files and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from capsdist.console import DONE, announced, log
from capsdist.data.encoded.write import write_encoded
from capsdist.data.format.shards import write_samples
from capsdist.data.format.source import SourceIndex
from capsdist.data.sets.encoded_files import EncodedFiles
from capsdist.data.sets.image_files import (
    ImageFile,
    ImageFiles,
    divided,
    files_in_folders,
    files_in_table,
)
from capsdist.data.sets.pack import check_root, summary
from capsdist.data.sets.spec import DatasetSpec
from capsdist.errors import DataError
from capsdist.storage import join

__all__ = ["FOLDER", "FolderOptions", "ImageOptions", "pack_folder", "tell_left_out"]

_SHOWN = 20  # files that cannot be read, by name
_MAX_SIDE = 4096


@dataclass(frozen=True)
class ImageOptions:
    """How images become a data set.

    Attributes:
        name: Name of the data set: a sub-folder of `root`.
        size: Height and width in pixels, or one number for both. Images are scaled until they cover it, and
            what is left over is cut off on both sides alike.
        encoded: Store the image files as they are, of any size, and decode them while training. Then `size`
            has no effect; where images have different sizes, train with --data.decode-size.
        grey: One grey channel; otherwise red, green and blue.
        validation: Share of the images of each class for the split validation, if none are given.
        test: Share of the images of each class for the split test, if none are given.
        seed: Seed of the division into splits and of the order in storage.
        compression: zstd halves the size of drawings and digits, and little of photographs.
        licence: Licence or source of the images, a note in the index.
        strict: Fail at a file that cannot be read. Otherwise such files are listed and left out.
        root: Folder or s3:// URL of the packed data sets.
    """

    name: str
    size: tuple[int, ...] = (64,)
    encoded: bool = False
    grey: bool = False
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    compression: Literal["none", "zstd"] = "none"
    licence: str = ""
    strict: bool = False
    root: str = "data"

    def sides(self) -> tuple[int, int]:
        """Return height and width in pixels.

        Raises:
            DataError: `size`, `validation` or `test` is out of range.
        """
        size = self.size * 2 if len(self.size) == 1 else self.size
        if len(size) != 2 or not all(1 <= side <= _MAX_SIDE for side in size):
            raise DataError(f"size={self.size}: give one or two numbers of pixels, 1 to {_MAX_SIDE:,}")
        if not (self.validation >= 0 and self.test >= 0 and self.validation + self.test < 1):
            raise DataError(
                f"validation={self.validation:g} and test={self.test:g}: give shares whose sum is below 1"
            )
        return size[0], size[1]


@dataclass(frozen=True)
class FolderOptions(ImageOptions):
    """How images in folders become a data set.

    Attributes:
        table: CSV file with the columns file (path inside the folder), label (several with ";" between them)
            and, if wanted, split (train, validation or test). Default: a sub-folder for each class, below
            folders train, validation and test if those are there.
    """

    table: Path | None = None


def pack_folder(photos: Path, options: FolderOptions) -> list[tuple[Path, str]]:
    """Pack the images in `photos`; return the files that could not be read, each with the reason.

    Files whose shard an earlier packing has finished are not read again.

    Raises:
        DataError: no images, options out of range, a split without images, with `strict` a file that cannot
            be read, or a place that cannot be written.
    """
    options.sides()
    check_root(options.root, options.name)
    with announced(log, f"listing {photos}"):
        files = files_in_table(options.table, photos) if options.table else files_in_folders(photos)
    classes = sorted({name for file in files for name in file.classes})
    num_labels = max(len(file.classes) for file in files)
    given = {file.split for file in files} - {""}
    splits = divided(
        files,
        validation=0 if "validation" in given else options.validation,
        test=0 if "test" in given else options.test,
        seed=options.seed,
    )
    left_out: list[tuple[Path, str]] = []

    def leave_out(path: Path, reason: str) -> None:
        if options.strict:
            raise DataError(f"{path}: {reason}; remove it, or pack without --strict")
        left_out.append((path, reason))

    for split, members in splits.items():
        place = join(options.root, options.name, split)
        with announced(log, f"writing {place}"):
            write = _write_encoded if options.encoded else _write_pixels
            index = write(place, members, classes, num_labels, leave_out, options)
        print(f"packed: {summary(place, index)}")
    return left_out


def _write_pixels(
    place: str,
    files: Sequence[ImageFile],
    classes: Sequence[str],
    num_labels: int,
    left_out: Callable[[Path, str], None],
    options: FolderOptions,
) -> SourceIndex:
    samples = ImageFiles(
        files,
        classes,
        size=options.sides(),
        channels=1 if options.grey else 3,
        num_labels=num_labels,
        left_out=left_out,
        strict=options.strict,
    )
    return write_samples(
        place, samples, classes=classes, licence=options.licence, compression=options.compression
    )


def _write_encoded(
    place: str,
    files: Sequence[ImageFile],
    classes: Sequence[str],
    num_labels: int,
    left_out: Callable[[Path, str], None],
    options: FolderOptions,
) -> SourceIndex:
    samples = EncodedFiles(files, classes, num_labels=num_labels, left_out=left_out, strict=options.strict)
    return write_encoded(
        place, samples, classes=classes, num_channels=1 if options.grey else 3, licence=options.licence
    )


def tell_left_out(files: Sequence[str]) -> None:
    """Print which files were left out and why, 20 at most, and how many more there are."""
    for line in files[:_SHOWN]:
        log(f"left out: {line}")
    if len(files) > _SHOWN:
        log(f"left out: {len(files) - _SHOWN:,} more files")


def _run(command: str, argv: Sequence[str]) -> int:
    """Parse `argv`, pack, and list the files that were left out."""

    def pack(
        photos: Annotated[Path, tyro.conf.Positional], options: tyro.conf.OmitArgPrefixes[FolderOptions]
    ) -> int:
        """Pack images of your own.

        Args:
            photos: Folder with a sub-folder of images for each class; any format that Pillow reads.
            options: How images become a data set.
        """
        tell_left_out([f"{path}: {reason}" for path, reason in pack_folder(photos, options)])
        return DONE

    return tyro.cli(pack, args=list(argv), prog=command)


FOLDER = DatasetSpec(
    name="folder",
    title="images of your own: a sub-folder for each class, or a CSV table",
    classes=(),
    run=_run,
)
