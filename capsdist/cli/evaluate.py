"""Measure the error of a checkpoint, or of an ensemble, on a packed split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from capsdist.console import DONE, announced, log
from capsdist.errors import ConfigError, Problem, RunError
from capsdist.runs.files import open_files
from capsdist.runs.retention import checkpoint_step
from capsdist.storage.place import folder_and_name

if TYPE_CHECKING:
    from capsdist.analysis.evaluation import StoredEvaluation
    from capsdist.storage import Folder

__all__ = ["error_text", "evaluate"]

_SCORES = {
    "length": "lengths (not probabilities)", "activation": "activations", "probability": "probabilities",
}  # fmt: skip


def evaluate(
    checkpoint: Annotated[str, tyro.conf.Positional],
    others: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    split: str | None = None,
    best: bool = False,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    batch_size: int = 128,
    shifts: int = 0,
    shift_step: int = 1,
    output: str | None = None,
) -> int:
    """Measure the error of a checkpoint on a packed split; the last line begins with `error_percent X`.

    The evaluation of a run on its own test split becomes its file evaluation.json: error with interval,
    confusion, calibration, and the prediction for every image.

    Args:
        checkpoint: Path or s3:// URL of a checkpoint, or of a run: its newest verified checkpoint.
        others: More of them: an ensemble, whose class scores are summed.
        split: Path or s3:// URL of the split; default: the test split of the (first) run.
        best: Of a run, the checkpoint with the lowest validated error_percent.
        device: auto: the GPU if there is one.
        batch_size: Images at a time.
        shifts: Sum the scores over copies of each image, moved by up to so many pixels each way. Where images
            are cropped, these are several crops: smallNORB, 25 of them: 16, and shift_step 8.
        shift_step: Pixels between the moves; 1 makes (2 shifts + 1)^2 copies.
        output: Path or s3:// URL of a JSON file to write, in place of evaluation.json in the run.
    """
    if output is not None and not folder_and_name(output)[1].endswith(".json"):
        raise ConfigError([Problem("output", output, "names no JSON file", "let the name end with .json")])
    with announced(log, f"reading {checkpoint}"):  # and importing torch, which takes seconds
        from capsdist.analysis.evaluation import measure, open_output, write_evaluation
    target = None if output is None else open_output(output)  # refused before the work
    stored = measure(
        [checkpoint, *others],
        split,
        best=best,
        device=device,
        batch_size=batch_size,
        shifts=shifts,
        shift_step=shift_step,
        log=log,
    )
    _print(stored)
    if output is None and not (others or split or shifts):
        target = _file_of_run(checkpoint)  # now: `measure` refuses a server that is away within a minute
    if target:
        try:
            write_evaluation(stored, *target)
            print(f"evaluation: {target[0].path(target[1])}")
        except RunError as error:
            if output is not None:
                raise
            log(f"warning: the evaluation is not kept ({error})")
    print(error_text(stored))
    return DONE


def _file_of_run(place: str) -> tuple[Folder, str] | None:
    """Return folder and name of the file of a run, given by itself or by a checkpoint; None without a run."""
    from capsdist.analysis.evaluation import EVALUATION

    folder, name = folder_and_name(place.rstrip("/"))
    run = open_files(place if checkpoint_step(name) is None else folder)
    return (run, EVALUATION) if run.read("config.json") is not None else None


def _print(stored: StoredEvaluation) -> None:
    """Print what stands above the last line."""
    model, run = stored.config["model"]["kind"], stored.config["train"]["name"]
    print(f"{stored.checkpoints[0]}: {model} of preset {stored.config['preset']}, run {run}")
    for name in stored.checkpoints[1:]:
        print(f"  and {name}")
    for label, row in enumerate(stored.confusion or []):
        error = 100 - 100 * row[label] / max(sum(row), 1)
        print(f"  class {label}: {sum(row):,} images, error_percent {error:.2f}")
    gap = f"expected calibration error {stored.calibration.expected_error:.4f}"
    print(f"{gap} of {_SCORES[stored.score]}")
    if stored.label_error_percent is not None:
        almost = f"almost_correct_percent {stored.almost_correct_percent:.2f}"
        print(f"label_error_percent {stored.label_error_percent:.2f}  {almost}")


def error_text(stored: StoredEvaluation) -> str:
    """Return the error with its interval, as people read it."""
    low, high = stored.error_interval_percent
    images = f"{stored.num_images:,} images"
    return f"error_percent {stored.error_percent:.2f}  (95 % interval {low:.2f} to {high:.2f}, {images})"
