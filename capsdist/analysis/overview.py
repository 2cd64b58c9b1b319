"""overview.png of a run: reads metrics, the newest checkpoint and some test images, and draws them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from capsdist.analysis.drawing import COLUMNS, Samples, draw_overview
from capsdist.config import Config
from capsdist.console import Log
from capsdist.data import Transform, eval_batches
from capsdist.data.format.source import open_split
from capsdist.errors import DocumentError, RunError
from capsdist.ops.predictions import largest, missed_labels
from capsdist.runs.checkpoints import newest_verified
from capsdist.runs.files import open_files
from capsdist.runs.record import read_rows
from capsdist.runs.rundir import OVERVIEW
from capsdist.storage import join
from capsdist.train.checkpoint import load_model
from capsdist.train.metrics import METRICS_NAME

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
    root = config.data.root if data_root is None else data_root
    split = join(root, config.data.name, config.data.test_split)
    samples = pick_samples(config, network, split, num_columns=2 * COLUMNS)
    figure = draw_overview(rows, samples, open_split(split).index.classes)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    files.write(OVERVIEW, drawn.getvalue())
    return files.path(OVERVIEW)


def pick_samples(config: Config, network: nn.Module, split: str | Path, num_columns: int) -> Samples:
    """Return test images for `num_columns`: of each class in turn, at the end some misread ones.

    With a decoder a misread image takes two columns, decoded as what it is and as what it was read as.
    """
    seen, shown, labels = _read_images(config, split)
    predictions, right = _predict(network, seen, labels)
    misread = (~right).nonzero().flatten()[:NUM_MISREAD]
    decoder = getattr(network, "decoder", None) is not None
    twice = torch.cat([misread, misread]).sort().values if decoder else misread
    good = _in_turn(labels, right, num_columns - len(twice))
    chosen = torch.cat([good, twice])
    targets = predictions[chosen]
    if decoder:
        targets[len(good) :: 2] = labels[misread]
    with torch.no_grad():
        output = network(seen[chosen], targets)
    reconstructions = output.reconstructions
    return Samples(
        images=_displayable(shown[chosen]),
        reconstructions=None if reconstructions is None else _displayable(reconstructions),
        labels=labels[chosen].numpy(),
        predictions=predictions[chosen].numpy(),
        targets=targets.numpy(),
    )


def _read_images(config: Config, split: str | Path, limit: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    """Return up to `limit` test images as the network sees them, as people see them, and their labels."""
    network_sees = Transform.of(config.data, train=False)
    people_see = replace(network_sees, standardise=False, normalise_mean=(), normalise_std=())
    seen, shown, labels = [], [], []
    for batch in eval_batches(split, batch_size=500):
        real = batch.weights > 0
        seen.append(network_sees(batch.images, batch.sample_ids, 0, 0)[real])
        shown.append(people_see(batch.images, batch.sample_ids, 0, 0)[real])
        labels.append(batch.labels[real])
        if sum(map(len, labels)) >= limit:
            break
    return torch.cat(seen)[:limit], torch.cat(shown)[:limit], torch.cat(labels)[:limit]


def _predict(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the predicted classes in the form of `labels`, and which images are read rightly, bool [N]."""
    with torch.no_grad():
        scores = torch.cat([network(part).scores for part in images.split(100)])
    if labels.dim() == 1:
        predictions = scores.argmax(1)
        return predictions, predictions == labels
    missed, num_labels = missed_labels(scores, labels)
    ranks = torch.arange(labels.shape[1])
    predictions = largest(scores, len(ranks)).masked_fill(ranks >= num_labels[:, None], -1)
    return predictions, missed == 0


def _in_turn(labels: Tensor, allowed: Tensor, num: int) -> Tensor:
    """Return the numbers of `num` allowed images, of all classes in turn; one label of an image counts."""
    labels = labels.view(len(labels), -1).amax(1)
    by_class = [((labels == j) & allowed).nonzero().flatten().tolist() for j in range(int(labels.max()) + 1)]
    turns: Iterable[int] = (
        members[turn]
        for turn in range(max(map(len, by_class), default=0))
        for members in by_class
        if turn < len(members)
    )
    return torch.tensor([n for _, n in zip(range(num), turns, strict=False)], dtype=torch.int64)


def _displayable(images: Tensor) -> np.ndarray:
    """Return images as matplotlib shows them: [N, H, W, 3] colour, or the channels' mean [N, H, W]."""
    images = images.clamp(0, 1)
    if images.shape[1] == 3:
        return images.permute(0, 2, 3, 1).numpy()
    return images.mean(1).numpy()
