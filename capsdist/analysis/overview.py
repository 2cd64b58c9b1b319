"""overview.png of a run: reads metrics, the newest checkpoint and some test images, and draws them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from capsdist.analysis.drawing import COLUMNS, Samples, displayable, draw_overview
from capsdist.analysis.subject import ReadImages, in_turn, read_images
from capsdist.config import Config
from capsdist.console import Log
from capsdist.data.format.source import open_split
from capsdist.errors import DocumentError, RunError
from capsdist.runs.checkpoints import newest_verified
from capsdist.runs.files import open_files
from capsdist.runs.record import read_rows
from capsdist.runs.rundir import OVERVIEW
from capsdist.storage import join
from capsdist.train.checkpoint import load_model
from capsdist.train.metrics import METRICS_NAME, Row

NUM_MISREAD = 2
"""Misread test images to show, as in the paper's figure 3; each is decoded twice where there is a decoder."""


def overview(run_dir: str | Path, *, data_root: str | Path | None = None, log: Log = print) -> str:
    """Draw `run_dir`/overview.png: curves, test images beside their reconstructions, and confusions.

    After the paper's figure 3. Runs on the CPU. `run_dir` is a path or an s3:// URL, `data_root` replaces the
    run's data.root. The newest whole checkpoint is taken; `log` is told of damaged ones, and of damaged
    lines of metrics. Returns the path or URL of the picture.

    Raises:
        RunError: the folder holds no metrics or no checkpoint.
        CheckpointError, DataError: the checkpoint or the test split cannot be read.
    """
    files = open_files(run_dir)
    try:
        rows = read_rows(files, log)
    except DocumentError as error:
        raise RunError(f"{error}; move it away and start again") from None
    if not rows:
        raise RunError(f"{files} holds no {METRICS_NAME}; give the folder of a run that has trained")
    with newest_verified(files, log) as whole:
        if whole is None:
            raise RunError(f"{files} has no checkpoint; give the folder of a run that has trained")
        config, network = load_model(whole.folder)
    if not config.data.name:
        raise RunError(f"{files}: the run has no packed set to draw images of; its data.name is empty")
    root = config.data.root if data_root is None else data_root
    split = join(root, config.data.name, _shown_split(config, rows))
    samples = pick_samples(config, network, split, num_columns=2 * COLUMNS)
    figure = draw_overview(rows, samples, open_split(split).index.classes)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    files.write(OVERVIEW, drawn.getvalue())
    return files.path(OVERVIEW)


def _shown_split(config: Config, rows: Sequence[Row]) -> str:
    """Return the test split of a run that has been tested, or has no other; of others that for validation."""
    tested = any(row["kind"] == "test" for row in rows)
    return config.data.test_split if tested else config.data.validation_split or config.data.test_split


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
        output = network(images.seen[chosen], targets)
    reconstructions = output.reconstructions
    return Samples(
        images=displayable(images.shown[chosen].numpy()),
        reconstructions=None if reconstructions is None else displayable(reconstructions.numpy()),
        labels=labels[chosen].numpy(),
        predictions=predictions[chosen].numpy(),
        targets=targets.numpy(),
        ids=chosen.numpy(),
    )
