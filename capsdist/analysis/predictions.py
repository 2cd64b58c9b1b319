"""What a network predicts for every image of a split: collected batch by batch, and stored by column."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, model_validator
from torch import Tensor

from capsdist.analysis.calibration import Calibration, Share, calibration
from capsdist.data import Batch
from capsdist.models import Output
from capsdist.ops import multi_hot
from capsdist.ops.predictions import largest

__all__ = ["MAX_PREDICTIONS", "Collector", "Predictions", "ScoreKind"]

MAX_PREDICTIONS = 500_000
"""Images up to which predictions are stored: 15 MB of JSON, with two labels an image 25 MB."""
_DECIMALS = 6

ScoreKind = Literal["length", "activation", "probability"]
"""Lengths of class capsules; their activations, of families that have some (EM routing); or of a network
without capsules the softmax of its logits, the sigmoid where images have several labels.
"""


class Predictions(BaseModel):
    """Predictions for N images, by column; K labels an image at most, -1 where it has fewer.

    Attributes:
        sample_ids: [N], places in the storage order of the split.
        labels: [N][K], class numbers, lowest first.
        predicted: [N][K], as many classes as the image has labels, largest score first.
        scores: [N][K], score of each predicted class, in [0, 1], to 6 decimals; 0 beside -1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_ids: list[NonNegativeInt]
    labels: list[list[int]]
    predicted: list[list[int]]
    scores: list[list[Share]]

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        shapes = {tuple(map(len, rows)) for rows in (self.labels, self.predicted, self.scores)}
        if len(shapes) > 1 or {len(self.labels)} != {len(self.sample_ids)}:
            raise ValueError("sample_ids, labels, predicted and scores must be of the same images")
        return self

    def wrong(self) -> np.ndarray:
        """Return for which images the predicted classes are not the labels, bool [N]."""
        labels, predicted = (np.sort(np.asarray(rows), axis=1) for rows in (self.labels, self.predicted))
        return (labels != predicted).any(axis=1)


class Collector:
    """Keeps the predictions of every image; a `capsdist.train.evaluate.Collect`.

    num_labels: labels of an image at most (K); of_capsules: what the scores of class capsules are. Memory: 32
    bytes an image and label.
    """

    def __init__(self, num_labels: int, of_capsules: ScoreKind = "length") -> None:
        self._num_labels = num_labels
        self._of_capsules: ScoreKind = of_capsules
        self._parts: list[tuple[np.ndarray, ...]] = []
        self.score: ScoreKind = of_capsules

    def __call__(self, batch: Batch, output: Output) -> None:
        """Take what a network made of a batch; padding is left out."""
        real = batch.weights > 0
        scores = output.scores[real].float()
        present = multi_hot(batch.labels[real], scores.shape[1])
        beyond = torch.arange(self._num_labels, device=scores.device) >= present.sum(1, keepdim=True)
        labels, predicted = (largest(each, self._num_labels) for each in (present, scores))
        self.score = "probability" if output.parent_poses is None else self._of_capsules
        values = self._shares(scores).gather(1, predicted).masked_fill(beyond, 0)
        right = present.gather(1, predicted).bool() & ~beyond
        labels, predicted = (each.masked_fill(beyond, -1) for each in (labels, predicted))
        columns = (batch.sample_ids[real], labels, predicted, values.double(), right)
        self._parts.append(tuple(each.cpu().numpy() for each in columns))

    def _shares(self, scores: Tensor) -> Tensor:
        if self.score != "probability":
            return scores
        return scores.softmax(1) if self._num_labels == 1 else scores.sigmoid()

    def results(self) -> tuple[Calibration, Predictions | None]:
        """Return calibration and predictions of all images; None for more than `MAX_PREDICTIONS` images.

        With several labels an image each predicted class counts by itself in the calibration.
        """
        ids, labels, predicted, values, right = map(np.concatenate, zip(*self._parts, strict=True))
        values = values.round(_DECIMALS).clip(0, 1)
        named = predicted >= 0
        table = calibration(values[named], right[named])
        if len(ids) > MAX_PREDICTIONS:
            return table, None
        return table, Predictions(
            sample_ids=ids.tolist(),
            labels=labels.tolist(),
            predicted=predicted.tolist(),
            scores=values.tolist(),
        )
