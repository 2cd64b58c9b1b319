"""overview.png of a run: reads metrics, the newest checkpoint and some test images, and draws them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from capsdist.analysis.drawing import COLUMNS, Samples, displayable, draw_overview
from capsdist.analysis.subject import ReadImages, in_turn, read_images
from capsdist.config import Config
from capsdist.console import Log
from capsdist.data.format.source import open_split
from capsdist.errors import RunError
from capsdist.models.decoder import overlaid
from capsdist.runs.checkpoints import newest_verified
from capsdist.runs.files import open_files
from capsdist.runs.record import trained_rows
from capsdist.runs.rundir import OVERVIEW
from capsdist.storage import Folder, join
from capsdist.train.checkpoint import load_model
from capsdist.train.metrics import Row

NUM_MISREAD = 2
"""Misread test images to show, as in the paper's figure 3; each is decoded twice where there is a decoder."""


@dataclass(frozen=True)
class Shown:
    """Images of a run to show, and the names of the classes by label."""

    samples: Samples
    classes: Sequence[str]


def overview(
    run_dir: str | Path, *, data_root: str | Path | None = None, shown: Shown | None = None, log: Log = print
) -> str:
    """Draw `run_dir`/overview.png: curves, test images beside their reconstructions, and confusions.

    After the paper's figure 3. Runs on the CPU. `run_dir` is a path or an s3:// URL, `data_root` replaces the
    run's data.root. The newest whole checkpoint is taken; `log` is told of damaged ones, and of damaged
    lines of metrics. `shown`: what `read_shown` has returned. Returns the path or URL of the picture.

    Raises:
        RunError: the folder holds no metrics or no checkpoint.
        CheckpointError, DataError: the checkpoint or the test split cannot be read.
    """
    files = open_files(run_dir)
    rows = trained_rows(files, log)
    shown = shown or read_shown(files, rows, data_root=data_root, log=log)
    figure = draw_overview(rows, shown.samples, shown.classes)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    files.write(OVERVIEW, drawn.getvalue())
    return files.path(OVERVIEW)


def read_shown(
    files: Folder, rows: Sequence[Row], *, data_root: str | Path | None = None, log: Log = print
) -> Shown:
    """Return images of the run in `files`, with what its newest whole checkpoint makes of them.

    Raises: as `overview`.
    """
    with newest_verified(files, log) as whole:
        if whole is None:
            raise RunError(f"{files} has no checkpoint; give the folder of a run that has trained")
        config, network = load_model(whole.folder)
    split = shown_place(config, rows, data_root)
    samples = pick_samples(config, network, split, num_columns=2 * COLUMNS)
    return Shown(samples, open_split(split).index.classes)


def shown_place(config: Config, rows: Sequence[Row], data_root: str | Path | None) -> str:
    """Return where the images to show lie, below `data_root` in place of the run's data.root.

    They are those of the test split if the run has been tested, or has no other; else of that for validation.

    Raises:
        RunError: the run has no packed set.
    """
    if not config.data.name:
        run = config.train.name
        raise RunError(f"run {run!r} has no packed set to draw images of; its data.name is empty")
    tested = any(row["kind"] == "test" for row in rows)
    split = config.data.test_split if tested else config.data.validation_split or config.data.test_split
    return join(config.data.root if data_root is None else data_root, config.data.name, split)


def pick_samples(config: Config, network: nn.Module, split: str | Path, num_columns: int) -> Samples:
    """Return test images for `num_columns`: of each class in turn, at the end some misread ones.

    With a decoder a misread image takes two columns, decoded as what it is and as what it was read as.
    """
    return picked(network, read_images(config, network, split), num_columns)


def picked(network: nn.Module, images: ReadImages, num_columns: int) -> Samples:
    """As `pick_samples`, of images that were read."""
    labels, predictions = images.labels, images.predictions
    misread = (~images.right).nonzero().flatten()[:NUM_MISREAD]
    decoder = getattr(network, "decoder", None) is not None
    twice = torch.cat([misread, misread]).sort().values if decoder else misread
    good = in_turn(labels, images.right, num_columns - len(twice))
    chosen = torch.cat([good, twice])
    targets = predictions[chosen]
    if decoder:
        targets[len(good) :: 2] = labels[misread]
    with torch.no_grad():
        output = network(images.seen[chosen], targets) if decoder else network(images.seen[chosen])
    reconstructions = output.reconstructions
    return Samples(
        images=displayable(images.shown[chosen].numpy()),
        reconstructions=None if reconstructions is None else displayable(overlaid(reconstructions).numpy()),
        labels=labels[chosen].numpy(),
        predictions=predictions[chosen].numpy(),
        targets=targets.numpy(),
        ids=chosen.numpy(),
    )
