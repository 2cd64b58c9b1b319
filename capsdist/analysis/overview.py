"""overview.png of a run: reads metrics, the newest checkpoint and some test images, and draws them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from capsdist.analysis.drawing import COLUMNS, Samples, displayable, draw_overview
from capsdist.config import Config
from capsdist.console import Log
from capsdist.data import Transform, eval_batches
from capsdist.data.format.source import open_split
from capsdist.errors import RunError
from capsdist.ops.predictions import largest, missed_labels
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
    seen, shown, labels = read_images(config, split)
    predictions, right = _predict(network, seen, labels)
    misread = (~right).nonzero().flatten()[:NUM_MISREAD]
    decoder = getattr(network, "decoder", None) is not None
    twice = torch.cat([misread, misread]).sort().values if decoder else misread
    good = images_in_turn(labels, right, num_columns - len(twice))
    chosen = torch.cat([good, twice])
    targets = predictions[chosen]
    if decoder:
        targets[len(good) :: 2] = labels[misread]
    with torch.no_grad():
        output = network(seen[chosen], targets)
    reconstructions = output.reconstructions
    return Samples(
        images=displayable(shown[chosen].numpy()),
        reconstructions=None if reconstructions is None else displayable(reconstructions.numpy()),
        labels=labels[chosen].numpy(),
        predictions=predictions[chosen].numpy(),
        targets=targets.numpy(),
    )


def read_images(config: Config, split: str | Path, limit: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    """Return up to `limit` test images as the network sees them, as people see them, and their labels."""
    network_sees = Transform.of(config.data, train=False)
    people_see = replace(network_sees, standardise=False, normalise_mean=(), normalise_std=())
    seen, shown, labels = [], [], []
    for batch in eval_batches(split, batch_size=500, decode_size=config.data.decode_size):
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


def images_in_turn(labels: Tensor, allowed: Tensor, num: int) -> Tensor:
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
