"""Classes that scores predict, and how many of the true ones are among them."""

from __future__ import annotations

import torch
from torch import Tensor

from capsdist.ops.targets import multi_hot

__all__ = ["largest", "missed_labels", "swapped"]


def largest(scores: Tensor, count: int) -> Tensor:
    """Return the classes of the `count` largest scores of each image: int64 [B, count] of [B, J] scores.

    The largest comes first; of equal scores the one of the lower number.
    """
    if count == 1:
        return scores.argmax(dim=1, keepdim=True)
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


def swapped(predictions: Tensor, labels: Tensor) -> Tensor:
    """Return of which images one of two predicted classes is the label in the other place: bool [B].

    predictions, labels: int64 [B, 2], of two different classes each.
    """
    return (predictions == labels.flip(1)).any(1)


def missed_labels(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many labels of each image are not among the predicted ones, and how many it has.

    As many classes are predicted as the image has labels: those of the largest scores (the authors' code,
    which takes two for MultiMNIST). Of soft targets the labels are the n largest, where n is their rounded
    sum; of equal ones each counts as a label.

    Args:
        scores: [B, J], any floating dtype.
        targets: int64 [B], int64 [B, K] or floating [B, J], see `capsdist.ops.targets`.

    Returns:
        Two int64 [B].

    Raises:
        ShapeError: as `multi_hot`.
    """
    num_classes = scores.shape[1]
    values = multi_hot(targets, num_classes)
    num_labels = values.sum(1).round().long()
    by_score = values.gather(1, largest(scores, num_classes))
    predicted = torch.arange(num_classes, device=scores.device) < num_labels[:, None]
    least = values.sort(dim=1, descending=True).values.gather(1, (num_labels - 1).clamp(min=0)[:, None])
    found = ((by_score >= least) & predicted).sum(1)
    return num_labels - found, num_labels
