"""Tar files of the webdataset format, which other programs have written, packed as a data set."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated

import numpy as np
import tyro

from capsdist.console import DONE, announced, log
from capsdist.data.encoded.register import TarTable, open_tar, tables_of
from capsdist.data.encoded.write import write_encoded
from capsdist.data.format.classes import read_class_names
from capsdist.data.format.packed import LABEL
from capsdist.data.format.shards import write_samples
from capsdist.data.format.source import SourceIndex
from capsdist.data.sets.folder import ImageOptions, tell_left_out
from capsdist.data.sets.holdout import Holdout, divided_members
from capsdist.data.sets.image_files import ALIASES, SPLITS
from capsdist.data.sets.members import DecodedMembers, Members
from capsdist.data.sets.originals import originals_folder
from capsdist.data.sets.pack import check_root, summary
from capsdist.data.sets.spec import TRAIN_PART, VALIDATION, DatasetSpec
from capsdist.data.sets.trees import Container, Places
from capsdist.errors import DataError
from capsdist.storage import join, open_folder

__all__ = ["WEBDATASET", "WebdatasetOptions", "pack_webdataset"]


@dataclass(frozen=True)
class WebdatasetOptions(ImageOptions):
    """How tar files become a data set.

    Attributes:
        classes: Text file with the name of each class, one a line, by label. By default, labels that are
            names are sorted, and those that are numbers are names themselves.
        label_key: Key of the label in key.json.
    """

    classes: Path | None = None
    label_key: str = "label"


def pack_webdataset(source: str, options: WebdatasetOptions) -> list[str]:
    """Pack the tar files in the folder or s3:// URL `source`; return what was left out, and why.

    Tar files whose names begin with train, val, validation or test are those splits, if any begins with
    train; else images are divided by the shares of `options`. Each tar file is read twice; those in S3 are
    copied to an unnamed temporary file beside the set's originals.

    Raises:
        DataError: as `tables_of`; options out of range, a split without images, with `strict` an image that
            cannot be read, or a place that cannot be written.
    """
    size = options.sides()
    check_root(options.root, options.name)
    left_out: list[str] = []

    def leave_out(reason: str) -> None:
        if options.strict:
            raise DataError(f"{reason}; or pack without --strict")
        left_out.append(reason)

    files: dict[str, Container] = {}
    scratch = originals_folder(options.root, options.name)

    @contextlib.contextmanager
    def opened(source: str, name: str, size_bytes: int) -> Iterator[IO[bytes]]:
        with open_tar(source, name, size_bytes) as file:
            local = open_folder(source).local
            files[name] = str(local / name) if local is not None else _copied(file, scratch)
            yield file

    with announced(log, f"reading the tar files in {source}"):
        classes, tables = tables_of(
            source,
            opened,
            classes=read_class_names(options.classes) if options.classes else (),
            label_key=options.label_key,
            warn=leave_out,
        )
    members = replace(_members(tables, files, classes), left_out=leave_out)
    for split, part in _splits(members, tables, options).items():
        place = join(options.root, options.name, split)
        with announced(log, f"writing {place}"):
            index = _write(place, part, size, options)
        print(f"packed: {summary(place, index)}")
    return left_out


def _copied(file: IO[bytes], scratch: Path) -> IO[bytes]:
    """Return an unnamed copy of a tar file that is in memory."""
    scratch.mkdir(parents=True, exist_ok=True)
    target = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # read as long as its places are used
    target.write(file.read())
    target.flush()
    file.seek(0)
    return target


def _members(tables: Sequence[TarTable], files: Mapping[str, Container], classes: tuple[str, ...]) -> Members:
    """Return the images of all tar files, in their order."""
    rows = np.concatenate([tar.table for tar in tables])
    container = np.repeat(np.arange(len(tables)), [len(tar.table) for tar in tables])
    places = Places(
        tuple(files[tar.name] for tar in tables),
        container,
        rows["offset"].astype(np.int64),
        rows["size"].astype(np.int64),
    )
    stamp = hashlib.sha256(repr([(tar.name, tar.sha256) for tar in tables]).encode()).hexdigest()
    return Members(places, rows[LABEL].astype(np.int64), classes, stamp)


def _splits(members: Members, tables: Sequence[TarTable], options: WebdatasetOptions) -> dict[str, Members]:
    """Return the members of each split, mixed: by the names of the tar files, or divided by shares."""
    named = [_split_of(tar.name) for tar in tables]
    if "train" in named and "" not in named:
        of_row = np.repeat(named, [len(tar.table) for tar in tables])
        splits = {split: members.take(np.flatnonzero(of_row == split)) for split in SPLITS if split in named}
    else:
        splits = {"train": members}
    taken = 0.0
    for split, share in (("test", options.test), ("validation", options.validation)):
        if split not in splits and share:
            rest = splits["train"]
            parts = divided_members(rest, Holdout(share / (1 - taken), seed=options.seed))
            splits |= {split: parts[VALIDATION], "train": parts[TRAIN_PART]}
            taken += share
    return {split: splits[split].mixed(options.seed, split) for split in SPLITS if split in splits}


def _split_of(name: str) -> str:
    """Return the split that the name of a tar file begins with (train-000.tar, val_1.tar), "" if none."""
    word = re.match("[a-z]*", name)
    split = ALIASES.get(word[0], word[0]) if word else ""
    return split if split in SPLITS else ""


def _write(place: str, members: Members, size: tuple[int, int], options: WebdatasetOptions) -> SourceIndex:
    channels = 1 if options.grey else 3
    if options.encoded:
        return write_encoded(
            place, members, classes=members.classes, num_channels=channels, licence=options.licence
        )
    return write_samples(
        place,
        DecodedMembers(members, size, channels),
        classes=members.classes,
        licence=options.licence,
        compression=options.compression,
    )


def _run(command: str, argv: Sequence[str]) -> int:
    """Parse `argv`, pack, and list the samples that were left out."""

    def pack(
        tars: Annotated[str, tyro.conf.Positional], options: tyro.conf.OmitArgPrefixes[WebdatasetOptions]
    ) -> int:
        """Pack tar files of the webdataset format.

        Args:
            tars: Folder or s3:// URL of tar files with an image (key.jpg, key.png, key.webp) and a label
                (key.cls, key.json or key.txt) for each sample.
            options: How tar files become a data set.
        """
        tell_left_out(pack_webdataset(tars, options))
        return DONE

    return tyro.cli(pack, args=list(argv), prog=command)


WEBDATASET = DatasetSpec(
    name="webdataset",
    title="tar files of the webdataset format: key.jpg with key.cls, key.json or key.txt",
    classes=(),
    run=_run,
)
