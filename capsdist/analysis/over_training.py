"""What changes over a training: figures A.1 (logits of routing) and A.2 (loss) of the paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from capsdist.analysis.drawing import BLUE, ORANGE, STYLE, curve, label_percents, smoothed
from capsdist.analysis.routed import LogitChange, logit_changes
from capsdist.analysis.subject import Drawn, NotDrawn, Subject
from capsdist.errors import CheckpointError, DocumentError, RunError
from capsdist.runs.checkpoints import opened_checkpoint
from capsdist.runs.files import open_files
from capsdist.runs.record import read_rows
from capsdist.runs.retention import checkpoint_name, checkpoint_step, finished_checkpoints
from capsdist.storage import Folder, join
from capsdist.train.checkpoint import load_model
from capsdist.train.metrics import METRICS_NAME

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ITERATIONS", "NUM_IMAGES", "draw_logit_changes", "draw_losses"]

ITERATIONS = 10
"""Routing iterations of figure A.1."""
NUM_IMAGES = 100
"""Images that figure A.1 is measured on: the first of the split."""


def draw_logit_changes(subject: Subject, num_images: int) -> Iterator[Drawn]:
    """Yield figure A.1 of the paper: how far each routing iteration moves the logits, over training.

    Measured on the first `NUM_IMAGES` images of the split, in float64, for every checkpoint that the run has
    kept (`--train.keep-checkpoints` says how many those are); of a checkpoint for that one.
    """
    images = subject.images.seen[:NUM_IMAGES]
    found: dict[int, LogitChange] = {}
    for step, place in _checkpoints(subject):
        try:
            with opened_checkpoint(place, log=subject.log) as (_, folder):
                network = load_model(folder)[1]
        except CheckpointError as error:
            subject.log(f"warning: passed over a checkpoint: {error}")
            continue
        found[step] = logit_changes(network, images, ITERATIONS)
    steps = list(found)
    change = np.array([each.change.tolist() for each in found.values()])
    difference = np.array([each.difference.tolist() for each in found.values()])
    heading = subject.heading("Figure A.1, change of the logits by each routing iteration")
    numbers = {
        "checkpoint": subject.source, "split": subject.split, "num_images": len(images), "note": subject.note,
        "iterations_in_training": subject.capsules.class_capsules.routing.iterations,
        "steps": steps, "logit_change": change.tolist(), "difference_of_changes": difference.tolist(),
    }  # fmt: skip
    yield Drawn("figure_a1", _draw_changes(steps, change, difference, heading), numbers)


def _checkpoints(subject: Subject) -> list[tuple[int, str]]:
    """Return steps and places of all checkpoints of the run, or of the one that the user named."""
    saved = finished_checkpoints(open_files(subject.place), subject.log)
    places = [(each.step, join(subject.place, checkpoint_name(each.step))) for each in saved]
    return places or [(subject.step, subject.place)]


def _draw_changes(steps: Sequence[int], change: np.ndarray, difference: np.ndarray, heading: str) -> Figure:
    """Draw changes [S, R] and differences [S, R - 1] over the steps, and those of the last step."""
    import matplotlib
    from matplotlib.figure import Figure

    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, change.shape[1]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 4.6), dpi=110, facecolor="white")
        figure.subplots_adjust(left=0.05, right=0.99, bottom=0.11, top=0.8, wspace=0.2)
        figure.suptitle(heading, x=0.012, ha="left", size=9, weight="bold", parse_math=False)
        left, middle, right = figure.subplots(1, 3)
        for axes, values, first, title in (
            (left, change, 1, "Change of a logit"),
            (middle, difference, 2, "Change minus the one before"),
        ):
            for number, line in enumerate(values.T):
                label = f"iteration {first + number}"
                axes.plot(steps, line, "o-", color=shades[first - 1 + number], markersize=3, label=label)
            axes.set(title=title, xlabel="step", yscale="log")
        figure.legend(handles=left.lines, loc="upper right", fontsize=8, ncols=5)
        iterations = np.arange(1, change.shape[1] + 1)
        right.plot(iterations, change[-1], "o-", color=BLUE, label="change")
        right.plot(iterations[1:], difference[-1], "s-", color=ORANGE, label="change minus the one before")
        right.set(title=f"After {steps[-1]:,} steps", xlabel="routing iteration", yscale="log")
        right.set_xticks(iterations)
        right.legend()
        for axes in (left, middle, right):
            label_percents(axes, zero=None)
    return figure


@dataclass(frozen=True)
class _Run:
    """The training loss of a run by step."""

    name: str
    iterations: int | None
    steps: np.ndarray
    losses: np.ndarray


def draw_losses(subjects: Sequence[Subject]) -> Drawn:
    """Return figure A.2 of the paper: the training loss of runs, each with its number of iterations.

    A checkpoint stands for the run that it belongs to. Runs without rows of training are left out.

    Raises:
        NotDrawn: none has any. RunError: the rows of a run cannot be read.
    """
    found = {str(files): _losses(files, subject) for subject in subjects for files in [_run_files(subject)]}
    runs = [run for run in found.values() if len(run.steps)]
    if not runs:
        raise NotDrawn(f"{', '.join(found)}: no {METRICS_NAME} with a row of training")
    numbers: dict[str, Any] = {
        "note": subjects[0].note,
        "runs": [
            {"run": run.name, "iterations": run.iterations, "steps": run.steps.astype(int).tolist(),
             "loss": run.losses.tolist()}
            for run in runs
        ],
    }  # fmt: skip
    heading = "\n".join(filter(None, ("Figure A.2, training loss", subjects[0].note)))
    return Drawn("figure_a2", _draw_losses(runs, heading), numbers)


def _run_files(subject: Subject) -> Folder:
    """Return the folder of the run that the user named, or that a named checkpoint belongs to."""
    files = open_files(subject.place)
    is_checkpoint = checkpoint_step(files.name) is not None
    return files.parent if is_checkpoint and files.parent is not None else files


def _losses(files: Folder, subject: Subject) -> _Run:
    try:
        rows = [row for row in read_rows(files, subject.log) if row["kind"] == "train"]
    except DocumentError as error:
        raise RunError(f"{error}; move it away, or give another run") from None
    config = subject.config
    return _Run(config.train.name, getattr(config.routing, "iterations", None), *curve(rows, "loss"))


def _draw_losses(runs: Sequence[_Run], heading: str) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6), dpi=110, layout="constrained", facecolor="white")
        figure.suptitle(heading, x=0.012, ha="left", size=9, weight="bold", parse_math=False)
        axes = figure.subplots()
        for number, run in enumerate(runs):
            of = "" if run.iterations is None else f"r={run.iterations}: "
            axes.plot(run.steps, run.losses, color=f"C{number}", alpha=0.25, linewidth=0.8)
            axes.plot(run.steps, smoothed(run.losses), color=f"C{number}", label=f"{of}{run.name}")
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.legend()
        label_percents(axes, zero=None)
    return figure
