"""Export the network of a run or checkpoint: read, measure, write, compare, and only then leave the files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from capsdist.config import Config
from capsdist.config.images import sides, size_text
from capsdist.console import Log
from capsdist.errors import ConfigError, Problem, RunError
from capsdist.export import FORMATS
from capsdist.export.check import check_equal
from capsdist.export.format import Format
from capsdist.export.subject import ErrorFound, Subject
from capsdist.importing import find
from capsdist.runs.checkpoints import opened_checkpoint
from capsdist.runs.rundir import RunFolder
from capsdist.storage import Folder, open_folder
from capsdist.storage.place import join
from capsdist.train.checkpoint import Checkpoint, open_checkpoint
from capsdist.train.evaluate import evaluate_checkpoint
from capsdist.train.manifest import CONFIG

__all__ = ["Done", "export_run"]


@dataclass(frozen=True)
class Done:
    """What was exported. source: the checkpoint; files: their sizes in bytes; difference: the largest from
    capsdist's own outputs.
    """

    source: str
    files: dict[str, int]
    difference: float


def export_run(
    place: str | os.PathLike[str],
    to: str,
    output: str | os.PathLike[str],
    *,
    best: bool = False,
    image_size: int | tuple[int, int] = 0,
    split: str | None = None,
    log: Log = print,
) -> Done:
    """Write the network of a run or checkpoint into the new folder `output` in the format `to`.

    Args:
        place: Path or s3:// URL of a run, its newest verified checkpoint, or of a checkpoint.
        to: A name of `FORMATS`, or the import path of a `Format`.
        output: Path or s3:// URL of a folder that does not exist yet, or is empty.
        best: Of a run, the checkpoint with the lowest validated error_percent.
        image_size: Height and width of images that programs take, where the network crops or resizes.
        split: Packed split on which the error of the model card is measured.
        log: Told of checkpoints that were passed over.

    Raises:
        ConfigError: the format is unknown, lacks a package, or does not take an option.
        CheckpointError: as `capsdist.load`. DataError: `split` cannot be read.
        RunError: `output` exists, or cannot be written; the network cannot be exported; or the files compute
            something else. Nothing is left then.
    """
    chosen = find(to, FORMATS, Format, field="to", thing="a format")
    if problem := chosen.problem(to) or _unfit(chosen, to, image_size, split):
        raise ConfigError([problem])
    beside, name = _new_folder(os.fspath(output))
    with opened_checkpoint(os.fspath(place), lowest_error=best, log=log) as (source, folder):
        saved = open_checkpoint(folder)
        subject = Subject.of(saved, source, _image_size(saved.config, image_size, chosen))
        if chosen.has_card:
            subject = replace(subject, error=_error(os.fspath(place), folder, saved, split, log))
        with beside.staging(name) as staged:
            chosen.write(staged, subject)
            difference = check_equal(subject, chosen.read(staged))
            sizes = {path.name: path.stat().st_size for path in sorted(staged.iterdir())}
            beside.store(staged, name, marker=CONFIG)
    return Done(source, sizes, difference)


def _unfit(chosen: Format, to: str, image_size: object, split: str | None) -> Problem | None:
    """Return which option the format does not take."""
    if image_size and not chosen.has_programs:
        return Problem("image_size", image_size, f"is not for {to}, which takes all sizes", "leave it out")
    if split and not chosen.has_card:
        return Problem("split", split, f"is not for {to}, which has no model card", "use --to hub")
    return None


def _new_folder(output: str) -> tuple[Folder, str]:
    """Return the folder above `output`, which can be written, and the name of `output` in it.

    Raises:
        RunError: there is something at `output`, or it lies directly below a bucket.
    """
    files = open_folder(output, error=RunError)
    if files.parent is None:
        raise RunError(f"{output}: lies directly below a bucket; give a folder below a prefix")
    if files.local is None:
        taken = bool(files.sizes())
    else:
        taken = os.path.lexists(files.local) and not (files.local.is_dir() and not os.listdir(files.local))
    if taken or not files.name:
        raise RunError(f"{output}: exists already; remove it, or choose another --output")
    files.parent.check_writable()
    return files.parent, files.name


def _image_size(config: Config, asked: int | tuple[int, int], chosen: Format) -> tuple[int, int]:
    """Return height and width of images that programs take, or of those that weights are compared with.

    Raises:
        ConfigError: the size is not known, or not that of the network.
    """
    data, wanted = config.data, sides(config.data.crop or config.model.image_size)
    is_free = bool(data.crop or data.resize)
    if not asked:
        if chosen.has_programs and is_free and not data.decode_size:
            rule = "is not known: the network crops or resizes images of any size"
            raise ConfigError(
                [Problem("image_size", 0, rule, "set --image-size HEIGHT WIDTH of your images")]
            )
        return sides(data.decode_size) if data.decode_size else wanted
    size = sides(asked)
    if min(size) >= 1 and (
        all(one >= other for one, other in zip(size, wanted, strict=True))
        if data.crop
        else data.resize or size == wanted
    ):
        return size
    least = "at least " if data.crop else ""
    raise ConfigError([Problem("image_size", size, "does not fit", f"set {least}{size_text(wanted)}")])


def _error(place: str, folder: Path, saved: Checkpoint, split: str | None, log: Log) -> ErrorFound | None:
    """Return the error of the checkpoint in `folder`: measured now on `split`, or what its run has measured.

    That is the test at the end of the run `place`, if this is its last checkpoint, else the validation with
    these weights; None without any.
    """
    if split:
        result = evaluate_checkpoint(folder, split, log=log)[1]
        assert "error_percent" in result  # `predictor_of` has refused a family that does not classify
        return ErrorFound(result["error_percent"], split, f"{result['num_images']:,} images, at export")
    data = saved.config.data
    run = RunFolder(place, log).read_result()
    if run and run.status == "done" and run.steps == saved.step and run.error_percent is not None:
        return ErrorFound(
            run.error_percent, join("data", data.name, data.test_split), "at the end of the run"
        )
    error = saved.metrics.get("error_percent")
    if error is not None and saved.metrics.get("validated_step") == saved.step:
        name = data.validation_split or data.test_split
        return ErrorFound(error, join("data", data.name, name), "when the run validated")
    return None
