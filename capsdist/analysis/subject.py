"""What figures are drawn of: a network of a run or checkpoint, and images of a split as it reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from capsdist.analysis.drawing import displayable
from capsdist.config import Config
from capsdist.config.models import find_family
from capsdist.console import Log
from capsdist.data import Transform, eval_batches
from capsdist.data.format.source import open_split
from capsdist.errors import CapsdistError, DataError
from capsdist.models import CapsuleNetwork, Decoder
from capsdist.models.decoder import overlaid
from capsdist.ops.predictions import largest, missed_labels
from capsdist.runs.checkpoints import opened_checkpoint
from capsdist.storage import join
from capsdist.train.checkpoint import build_network, open_checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Drawn", "NotDrawn", "ReadImages", "Subject", "displayed", "in_turn", "open_subject", "read_images",
]  # fmt: skip

LIMIT = 1000
"""Images of a split that are read, at most: the first ones."""

NO_DECODER = "the network has no decoder; train with --model.decoder"


class NotDrawn(CapsdistError):
    """The network or its images lack what a figure shows; the message says what."""


@dataclass(frozen=True)
class Drawn:
    """A figure, the name of its files, and the numbers in it, as JSON holds them."""

    name: str
    figure: Figure
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class ReadImages:
    """The first images of a split, their ids from 0, and what a network makes of them.

    seen, shown: float32 [N, C, H, W], as the network sees them, and in [0, 1] as people see them; labels,
    predictions: int64 [N], or [N, K] for up to K classes an image, -1 where it has fewer; right: bool [N].
    Predictions of a family that does not classify are the labels.
    """

    seen: Tensor
    shown: Tensor
    labels: Tensor
    predictions: Tensor
    right: Tensor


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode on the CPU, its checkpoint, and images of the split at the place `split`.

    place: what the user named; source, step: of the checkpoint that this means; note: stands in each heading;
    log: is told of what is passed over.
    """

    place: str
    source: str
    step: int
    config: Config
    network: nn.Module
    classes: tuple[str, ...]
    split: str
    images: ReadImages
    note: str = ""
    log: Log = print

    def heading(self, words: str) -> str:
        """Return the heading of a figure that shows `words`."""
        split = "/".join(self.split.partition("?")[0].rstrip("/").split("/")[-2:])
        of = f"{self.config.train.name} after {self.step:,} steps, {split}"
        return "\n".join(filter(None, (words, of, self.note)))

    def facts(self, chosen: Tensor) -> dict[str, Any]:
        """Return what the numbers of each figure begin with; chosen: the images in it, int64 [n]."""
        images = self.images
        return {
            "checkpoint": self.source, "step": self.step, "split": self.split, "note": self.note,
            "ids": chosen.tolist(), "labels": images.labels[chosen].tolist(),
            "predictions": images.predictions[chosen].tolist(),
        }  # fmt: skip

    @property
    def capsules(self) -> CapsuleNetwork:
        """The network, if it has capsules.

        Raises:
            NotDrawn: it has none.
        """
        if not isinstance(self.network, CapsuleNetwork):
            raise NotDrawn(f"a network of the family {self.config.model.kind} has no capsules")
        return self.network

    @property
    def decoder(self) -> Decoder:
        """The decoder of the network.

        Raises:
            NotDrawn: it has none.
        """
        if self.capsules.decoder is None:
            raise NotDrawn(NO_DECODER)
        return self.capsules.decoder

    @torch.no_grad()
    def poses(self, chosen: Tensor) -> Tensor:
        """Return the class capsules [n, J, E] of the images `chosen`, int64 [n]."""
        poses = self.capsules(self.images.seen[chosen]).parent_poses
        assert poses is not None
        return poses

    @torch.no_grad()
    def decoded(self, poses: Tensor, labels: Tensor) -> np.ndarray:
        """Return what the decoder draws of poses [n, J, E], as `displayable`; labels: see `Decoder`.

        Several labels that it draws one by one are overlaid.

        Raises:
            NotDrawn: there is no decoder.
        """
        return displayable(overlaid(self.decoder(poses, labels)).numpy())


def open_subject(
    place: str,
    split: str | None = None,
    *,
    best: bool = False,
    limit: int = LIMIT,
    note: str = "",
    log: Log = print,
) -> Subject:
    """Return the network of `place`, a run or checkpoint, and the first images of `split`.

    place: path or s3:// URL; of a run the newest verified checkpoint, or with `best` the one with the lowest
    validated error. split: path or s3:// URL; default: the test split of the run.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        DataError, RunError: the split or the storage cannot be read, or the run names no split.
    """
    with opened_checkpoint(place, lowest_error=best, log=log) as (source, folder):
        saved = open_checkpoint(folder)
        network = build_network(saved)
    data = saved.config.data
    if not (split or data.name):
        raise DataError(f"{place}: names no packed split; give one with --split")
    split = split or join(data.root, data.name, data.test_split)
    images = read_images(saved.config, network, split, limit)
    classes = tuple(open_split(split).index.classes)
    return Subject(place, source, saved.step, saved.config, network, classes, split, images, note, log)


def read_images(config: Config, network: nn.Module, split: str | Path, limit: int = LIMIT) -> ReadImages:
    """Return up to `limit` images of `split`, and what `network` makes of them."""
    network_sees, people_see = Transform.of(config.data, train=False), displayed(config)
    seen, shown, labels = [], [], []
    for batch in eval_batches(split, batch_size=min(500, limit), decode_size=config.data.decode_size):
        real = batch.weights > 0
        seen.append(network_sees(batch.images, batch.sample_ids, 0, 0)[real])
        shown.append(people_see(batch.images, batch.sample_ids, 0, 0)[real])
        labels.append(batch.labels[real])
        if sum(map(len, labels)) >= limit:
            break
    images, given = torch.cat(seen)[:limit], torch.cat(labels)[:limit]
    if not find_family(config.model.kind).classifies:  # nothing is read, and nothing misread
        return ReadImages(images, torch.cat(shown)[:limit], given, given, torch.ones(len(given)) > 0)
    return ReadImages(images, torch.cat(shown)[:limit], given, *_predict(network, images, given))


def displayed(config: Config) -> Transform:
    """Return the transform of the images as people see them: cut as for the network, pixels in [0, 1]."""
    seen = Transform.of(config.data, train=False)
    return replace(seen, standardise=False, normalise_mean=(), normalise_std=())


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


def in_turn(labels: Tensor, allowed: Tensor, num: int) -> Tensor:
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
