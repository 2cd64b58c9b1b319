"""Make tar files that other programs have written, such as webdataset, a data set without changing them."""

from __future__ import annotations

from pathlib import Path

from capsdist.console import log
from capsdist.data.encoded.register import index_tars
from capsdist.data.format.classes import read_class_names
from capsdist.data.sets.pack import summary

__all__ = ["index"]

_MAX_WARNINGS = 20


def index(
    folder: str,
    /,
    to: str = "",
    classes: Path | None = None,
    label_key: str = "label",
    grey: bool = False,
    licence: str = "",
) -> None:
    """Make the tar files in a folder a split that training reads, without changing them.

    Args:
        folder: Path or s3:// URL of tar files with an image (key.jpg) and a label (key.cls, key.json or
            key.txt) for each sample.
        to: Folder or s3:// URL of the split, data/NAME/train for example; by default beside the tar files.
        classes: Text file with the name of each class, one a line, by label. By default, labels that are
            names are sorted, and those that are numbers are names themselves.
        label_key: Key of the label in key.json.
        grey: Decode images to one grey channel; otherwise red, green and blue.
        licence: Licence or source of the images, a note in the index.
    """
    warned: list[str] = []

    def warn(text: str) -> None:
        warned.append(text)
        if len(warned) <= _MAX_WARNINGS:
            log(text)

    found = index_tars(
        folder,
        to,
        classes=read_class_names(classes) if classes else (),
        label_key=label_key,
        num_channels=1 if grey else 3,
        licence=licence,
        warn=warn,
        progress=lambda done, total: log(f"read {done:,} of {total:,} tar files"),
    )
    if len(warned) > _MAX_WARNINGS:
        log(f"{len(warned) - _MAX_WARNINGS:,} more samples or files are passed over")
    print(f"indexed: {summary(to or folder, found)}")
