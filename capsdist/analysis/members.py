"""The error of an ensemble by the number of its members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from capsdist.console import Log
from capsdist.data import Batch
from capsdist.errors import DataError
from capsdist.models import Output
from capsdist.runs.checkpoints import opened_checkpoint
from capsdist.statistics import error_interval
from capsdist.train.evaluate import evaluate_checkpoints

__all__ = ["Members", "errors_by_size"]


@dataclass(frozen=True)
class Members:
    """Errors in percent on `num_images` images, in the order in which the members were given.

    alone: of each member by itself; together: of the first 1, 2, ... members, whose class scores are summed;
    intervals: ends of the 95 % interval of each in `together`, by Wilson.
    """

    num_images: int
    alone: list[float]
    together: list[float]
    intervals: list[list[float]]


class _Scores:
    """Keeps scores [N, J] and labels [N] of all images, in storage order."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []
        self.labels: list[Tensor] = []

    def __call__(self, batch: Batch, output: Output) -> None:
        real = batch.weights > 0
        self.scores.append(output.scores[real].float().cpu())
        self.labels.append(batch.labels[real].cpu())


def errors_by_size(
    places: Sequence[str],
    split: str | None = None,
    *,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    batch_size: int = 128,
    log: Log,
) -> Members:
    """Return the errors of the networks at `places`, alone and as ensembles of the first 1, 2, ...

    places, split: as of `capsdist.analysis.evaluation.measure`; default: the test split of the first.
    Source: paper, section 7 (7 networks for CIFAR-10). Cost: one pass over the images a network.

    Raises:
        DataError: images have several labels. As `evaluate_checkpoints`.
    """
    alone, together, intervals = [], [], []
    total: Tensor | None = None
    num_images = 0
    for place in places:
        collect = _Scores()
        with opened_checkpoint(place, log=log) as (name, folder):
            log(f"evaluating {name}")
            found = evaluate_checkpoints(
                [folder], split, device=device, batch_size=batch_size, collect=collect, log=log
            )
        split = split or found.split
        if found.configs[0].model.num_labels > 1:
            raise DataError(f"{name}: has several labels an image; give networks of one class an image")
        scores, labels = torch.cat(collect.scores), torch.cat(collect.labels)
        total = scores if total is None else total + scores
        num_images = len(labels)
        assert "error_percent" in found.result  # or evaluate_checkpoints refuses
        alone.append(found.result["error_percent"])
        together.append(100 * float((total.argmax(1) != labels).double().mean()))
        intervals.append(error_interval(together[-1], num_images))
    return Members(num_images, alone, together, intervals)
