"""Evaluate runs and checkpoints with all that is worth keeping, and store it as `evaluation.json`.

`measure` makes a `StoredEvaluation`, `write_evaluation` and `read_evaluation` its file, on a disk or on S3.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from capsdist.analysis.calibration import Calibration
from capsdist.analysis.predictions import MAX_PREDICTIONS, Collector, Predictions, ScoreKind
from capsdist.config.models import find_family
from capsdist.console import Log, announced
from capsdist.errors import DataError, DocumentError, RunError
from capsdist.runs.checkpoints import opened_checkpoint
from capsdist.runs.files import read_document
from capsdist.runs.retention import checkpoint_step
from capsdist.storage import Folder, open_folder
from capsdist.storage.documents import dump_json, parse_document, seal
from capsdist.storage.place import folder_and_name
from capsdist.train.checkpoint import read_config, versions
from capsdist.train.evaluate import evaluate_checkpoints

__all__ = [
    "EVALUATION", "StoredEvaluation", "kept_evaluation", "measure", "open_output", "read_evaluation",
    "write_evaluation",
]  # fmt: skip

EVALUATION = "evaluation.json"
"""Name of the file in the folder of a run: the evaluation of a checkpoint on the test split of the run."""


class StoredEvaluation(BaseModel):
    """An evaluation of one network, or of several as an ensemble; the content of `evaluation.json`.

    Attributes:
        format: of the file.
        written: when, UTC.
        versions: of the programs that computed it.
        checkpoints: paths or URLs.
        seeds: `train.seed` of each.
        config: whole configuration of the first.
        split, split_digest: path or URL, and what names the images whatever the place.
        classes: names by label.
        device, precision, batch_size: how it was computed.
        shifts, shift_step: pixels; the scores are means over copies moved by up to so many each way, in such
            steps.
        num_images: images, each counted once.
        error_percent, loss, confusion, label_error_percent, almost_correct_percent: see
            `capsdist.train.evaluate.Evaluation`; None where that has no such figure.
        error_interval_percent: ends of the 95 % interval of error_percent, by Wilson.
        score: what the scores in `predictions` and `calibration` are.
        calibration: how well these scores agree with how often predictions are right.
        predictions: for every image; None for more than 500,000 images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    written: str
    versions: dict[str, str]
    checkpoints: list[str] = Field(min_length=1)
    seeds: list[int]
    config: dict[str, Any]
    split: str
    split_digest: str
    classes: list[str]
    device: str
    precision: str
    batch_size: PositiveInt
    shifts: NonNegativeInt
    shift_step: PositiveInt = 1
    num_images: PositiveInt
    error_percent: NonNegativeFloat
    error_interval_percent: list[NonNegativeFloat] = Field(min_length=2, max_length=2)
    loss: float
    confusion: list[list[NonNegativeInt]] | None = None
    label_error_percent: NonNegativeFloat | None = None
    almost_correct_percent: NonNegativeFloat | None = None
    score: ScoreKind
    calibration: Calibration
    predictions: Predictions | None


def measure(
    places: Sequence[str],
    split: str | os.PathLike[str] | None = None,
    *,
    best: bool = False,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    batch_size: int = 128,
    shifts: int = 0,
    shift_step: int = 1,
    log: Log,
) -> StoredEvaluation:
    """Return what the networks at `places` make of a split: several are an ensemble.

    places: paths or s3:// URLs of checkpoints, or of runs, which stand for their newest verified checkpoint,
    with `best` for that of the lowest validated error. Other arguments and errors are those of
    `evaluate_checkpoints`.
    """
    with contextlib.ExitStack() as stack:
        opened = []
        for place in places:
            with announced(log, f"reading {place}"):
                opened.append(stack.enter_context(opened_checkpoint(place, lowest_error=best, log=log)))
        folders = [folder for _, folder in opened]
        model = read_config(folders[0]).model
        score: ScoreKind = "activation" if find_family(model.kind).activations else "length"
        collector = Collector(model.num_labels, score)
        found = evaluate_checkpoints(
            folders,
            split,
            device=device,
            batch_size=batch_size,
            shifts=shifts,
            shift_step=shift_step,
            collect=collector,
            log=log,
        )
    table, predictions = collector.results()
    if predictions is None:
        log(f"no predictions are stored: there are more than {MAX_PREDICTIONS:,} images")
    return StoredEvaluation(
        written=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        versions=versions(),
        checkpoints=[name for name, _ in opened],
        seeds=[config.train.seed for config in found.configs],
        config=found.configs[0].model_dump(mode="json"),
        split=found.split,
        split_digest=found.index.digest,
        classes=list(found.index.classes),
        device=found.device.type,
        precision=found.precision,
        batch_size=batch_size,
        shifts=shifts,
        shift_step=shift_step,
        score=collector.score,
        calibration=table,
        predictions=predictions,
        **found.result,
    )


def open_output(file: str | os.PathLike[str]) -> tuple[Folder, str]:
    """Return the folder and the name of a file to write, a path or an s3:// URL; the folder may be new.

    Raises:
        RunError: it cannot be written; in under 10 seconds.
    """
    place, name = folder_and_name(file)
    folder = open_folder(place, error=RunError)
    folder.check_writable()
    return folder, name


def write_evaluation(stored: StoredEvaluation, folder: Folder, name: str = EVALUATION) -> None:
    """Write `stored` as the file `name`.

    Raises:
        RunError: the storage fails.
    """
    folder.write(name, dump_json(seal(stored.model_dump(mode="json")), indent=None))


def read_evaluation(file: str | os.PathLike[str]) -> StoredEvaluation:
    """Return the evaluation that `file` holds: an `evaluation.json`, or a run with one; a path or s3:// URL.

    Raises:
        DataError: there is none, or the storage cannot be read.
        DocumentError: it is damaged, or of another format; names it.

    Example:
        >>> stored = read_evaluation("runs/mnist")
        >>> stored.error_percent, stored.predictions.wrong().nonzero()
    """
    place, name = folder_and_name(file)
    if not name.endswith(".json"):
        place, name = os.fspath(file), EVALUATION
    files = open_folder(place)
    stored = read_document(
        files, name, lambda content: parse_document(content, StoredEvaluation, sealed=True)
    )
    if stored is None:
        raise DataError(f"{files.path(name)}: there is no such file; `capsdist evaluate` writes it")
    return stored


def kept_evaluation(place: str, *, best: bool, log: Log) -> StoredEvaluation | None:
    """Return the `evaluation.json` of a run, if it is of the checkpoint that `measure` would take at `place`.

    It is if step and configuration are equal. None: there is none, it is damaged, or of another checkpoint.

    Raises:
        CheckpointError, DataError, RunError: as `opened_checkpoint`.
    """
    folder, name = folder_and_name(place.rstrip("/"))
    try:
        stored = read_evaluation(place if checkpoint_step(name) is None else folder)
    except (DataError, DocumentError):
        return None
    with opened_checkpoint(place, lowest_error=best, log=log) as (checkpoint, files):
        steps = [checkpoint_step(folder_and_name(each)[1]) for each in (checkpoint, *stored.checkpoints)]
        config = read_config(files).model_dump(mode="json")
    same = len(steps) == 2 and steps[0] == steps[1] and not stored.shifts and config == stored.config
    return stored if same else None
