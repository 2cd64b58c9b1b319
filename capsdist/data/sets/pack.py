"""Shared parts of the packing commands: pack the splits that are missing, print a summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from capsdist.config.rules import NAME
from capsdist.console import DONE, announced, log, run_program
from capsdist.data.encoded.write import write_encoded
from capsdist.data.format.checks import check_split
from capsdist.data.format.samples import ArraySamples, Samples
from capsdist.data.format.shards import write_samples
from capsdist.data.format.source import SourceIndex
from capsdist.data.sets.holdout import Holdout, divided, divided_members
from capsdist.data.sets.members import Members
from capsdist.data.sets.originals import originals_folder
from capsdist.data.sets.spec import TRAIN_PART, VALIDATION, DatasetSpec
from capsdist.errors import DataError
from capsdist.storage import is_remote, join, open_folder
from capsdist.storage.place import in_uploaded_package

if TYPE_CHECKING:
    import numpy as np

    from capsdist.data.encoded.write import Run
    from capsdist.data.sets.spec import Loaded

__all__ = ["check_root", "pack", "pack_command", "pack_dataset", "run_command", "run_pack", "summary"]

_TELL_S = 10.0  # between two lines of progress

_WORKERS = "Processes that write shards; 0: one for each core of this machine, or of the cluster RAY_ADDRESS."
_DIVISION = (
    (
        "validation",
        0.0,
        "Share of the images of each class in train, 0.1 for example, that becomes the split validation; the "
        "others become train_part. 0: neither.",
    ),
    ("validation_first", 0, "In place of a share: the first so many images of train; MultiMNIST: 10000."),
    ("seed", 0, "Seed that draws the images for validation."),
    ("whole", True, "With validation, also write train, all images, for presets that train on everything."),
)


def pack(
    root: str | Path,
    name: str,
    classes: Sequence[str],
    load: Callable[[], Mapping[str, Loaded]],
    *,
    splits: Sequence[str] = ("train", "test"),
    licence: str = "",
    anew: bool = False,
    parallel: AbstractContextManager[Run] | None = None,
) -> None:
    """Write the data set `name` below `root`, a path or s3:// URL, unless it is there and intact.

    load: returns samples, members, or images uint8 [N,C,H,W] and labels int64 [N], of every split; called
    only if needed.
    A packed set with a missing or damaged shard is packed again, and with `anew` every set; intact shards of
    the same content are kept. Whether a place on S3 can be written is checked before anything is loaded.
    parallel: what `DatasetSpec.parallel` returns.

    Raises:
        DataError: what `load` and `write_samples` raise.
    """
    check_root(root, name)
    remedy = "it is written anew"
    folders = {split: join(root, name, split) for split in splits}
    try:
        if not anew:
            with announced(log, f"reading what is packed below {root}"):
                packed = [summary(folder, check_split(folder, remedy=remedy)) for folder in folders.values()]
            for line in packed:
                print(f"already packed: {line}")
            return
    except DataError as error:
        if is_remote(root) or any(Path(folder).exists() for folder in folders.values()):
            print(f"packing: {error}")
    with announced(log, f"fetching and reading the original files of {name}"):
        loaded = dict(load())
    with parallel or nullcontext() as run:
        for split in list(loaded):
            with announced(log, f"writing {folders[split]}"):
                samples = loaded.pop(split)  # so that the memory of a split ends with its writing
                index: SourceIndex
                if isinstance(samples, Members):
                    index = _write_members(folders[split], samples, licence, run)
                else:
                    index = write_samples(
                        folders[split], _as_samples(samples), classes=classes, licence=licence
                    )
            print(f"packed: {summary(folders[split], index)}")


def _write_members(folder: str, members: Members, licence: str, run: Run | None) -> SourceIndex:
    told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > _TELL_S:
            told = time.monotonic()
            log(f"{folder}: {done:,} of {total:,} images")

    classes = members.classes
    return write_encoded(folder, members, classes=classes, licence=licence, progress=progress, run=run)


def _as_samples(samples: Samples | tuple[np.ndarray, np.ndarray]) -> Samples:
    return ArraySamples(image=samples[0], label=samples[1]) if isinstance(samples, tuple) else samples


def check_root(root: str | Path, name: str) -> None:
    """Check that the data set `name` can be written below `root`, a path or s3:// URL, before it is read.

    Raises:
        DataError: it cannot, or would be lost with a job; `name` is not the name of a folder.
    """
    if not NAME.fullmatch(name):
        raise DataError(f"name={name!r} must be letters, digits, '.', '_' or '-'; choose another name")
    if is_remote(root):
        open_folder(join(root, name)).check_writable()
    elif in_uploaded_package(str(root)):
        raise DataError(
            f"{root}: lies in the folder to which Ray has uploaded this job's code, and would be lost with "
            "it; give a folder that all machines see, or s3://bucket/prefix"
        )


def summary(folder: str, index: SourceIndex) -> str:
    """Return one line on a packed split: images, shards, size, name of the data set."""
    shape = " x ".join(map(str, index.stored_shape))
    if None in index.stored_shape:
        shape = f"{index.stored_shape[0]} channels and different sizes"
    return f"{folder}: {index.num_samples:,} images of {shape} in {index.stored}, digest {index.digest[:16]}"


def pack_dataset(
    spec: DatasetSpec,
    command: str,
    *,
    source: Path | None,
    root: str,
    holdout: Holdout | None = None,
    whole: bool = True,
    workers: int = 0,
) -> None:
    """Pack `spec` below `root`, a path or s3:// URL; see `DatasetSpec` for source and command.

    holdout: also write the images of `train` as the splits `train_part` and `validation`; whole: and `train`
    itself, for presets that train on everything; workers: processes, for a set that is packed in parallel.

    Raises:
        DataError: as `pack` and `held_out`; the set has no images to divide.
    """
    folder, splits, load = originals_folder(root, spec.name), spec.splits_of(source), spec.load
    if load is None:
        raise DataError(f"{spec.name} has no files to load; pack it with `{command}`")
    if holdout and not spec.can_be_divided:
        raise DataError(f"{spec.name} has the splits {', '.join(splits)} of its own; pack it as it is")
    if holdout:
        splits = (*(split for split in splits if whole or split != "train"), TRAIN_PART, VALIDATION)

    def read() -> dict[str, Loaded]:
        loaded = dict(load(source, folder, command))
        if holdout:
            train = loaded["train"]
            if isinstance(train, Members):
                loaded |= divided_members(train, holdout)
            else:
                loaded |= divided(_as_samples(train), holdout, spec.together)
        return {split: loaded[split] for split in splits}

    pack(
        root,
        spec.name,
        spec.classes,
        read,
        splits=splits,
        licence=spec.licence,
        anew=holdout is not None,
        parallel=spec.parallel(workers) if spec.parallel else None,
    )


def run_pack(spec: DatasetSpec, command: str, argv: Sequence[str] | None = None) -> None:
    """Run the packing command of `spec` with `argv` (default: the process's arguments) and exit."""
    sys.exit(run_program(lambda: pack_command(spec, command, argv)))


def pack_command(spec: DatasetSpec, command: str, argv: Sequence[str] | None = None) -> int:
    """Parse the options of the packing command of `spec`, pack it, and return the exit status."""
    import tyro

    if spec.run:
        return spec.run(command, sys.argv[1:] if argv is None else argv)

    help_of_root = (
        f"Folder or s3:// URL of the packed data sets; the set goes into its subfolder `{spec.name}`."
    )
    options: list[Any] = [("root", Annotated[str, tyro.conf.arg(help=help_of_root)], field(default="data"))]
    if spec.source:
        options.insert(
            0, ("source", Annotated[Path | None, tyro.conf.arg(help=spec.source)], field(default=None))
        )
    if spec.can_be_divided:
        options += [
            (name, Annotated[type(default), tyro.conf.arg(help=text)], field(default=default))
            for name, default, text in _DIVISION
        ]
    if spec.parallel:
        options.append(("workers", Annotated[int, tyro.conf.arg(help=_WORKERS)], field(default=0)))
    chosen = tyro.cli(
        make_dataclass("Pack", options), args=argv, prog=command, description=f"Pack {spec.title}."
    )
    holdout = None
    if spec.can_be_divided and (chosen.validation or chosen.validation_first):
        holdout = Holdout(chosen.validation, chosen.validation_first, chosen.seed)
    if holdout is None and not getattr(chosen, "whole", True):
        raise DataError("whole=False: leaves out train, and nothing takes its place; give --validation, too")
    source, whole = getattr(chosen, "source", None), getattr(chosen, "whole", True)
    workers = getattr(chosen, "workers", 0)
    pack_dataset(
        spec, command, source=source, root=chosen.root, holdout=holdout, whole=whole, workers=workers
    )
    return DONE


def run_command(main: Callable[..., None]) -> None:
    """Run `main` with arguments from the command line and exit: 0, or 1 with one line on stderr.

    A wrong command line exits with 2.
    """
    import tyro

    sys.exit(run_program(lambda: tyro.cli(main) or 0))
