"""Errors of images with several labels: what they count, and where they are stored, shown and drawn."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from capsdist.analysis.drawing import Samples, draw_overview, headline
from capsdist.analysis.subject import _predict
from capsdist.config import Loss
from capsdist.errors import ShapeError
from capsdist.models import CapsNet, Output
from capsdist.models.registry import CAPSNET
from capsdist.train.display import Display
from capsdist.train.metrics import parse_metrics
from capsdist.train.step import error_percents, metric_names, metric_sums

SETS = torch.tensor([[4, -1, 0], [2, 2, 1], [-1, -1, -1], [-1, 3, 0]])


def sums_of(labels: Tensor, num_labels: int, scores: Tensor, weights: Tensor) -> dict[str, float]:
    options = Loss()
    losses = CAPSNET.losses(Output(scores), scores, labels, options)
    found = metric_sums(CAPSNET, losses, scores, labels, weights, num_labels)
    return dict(zip(metric_names(CAPSNET, num_labels), found.tolist(), strict=True))


def test_sums_count_wrong_images_and_missed_labels_and_no_padding() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2, 0.3, 0.8], [0.1, 0.9, 0.2, 0.8, 0.3], [0.5] * 5, [0.9] * 5])
    weights = torch.tensor([1.0, 1, 1, 0])
    # {0, 4} is found; of {1, 2} only 1; the third image has no label, and so nothing is missed
    sums = sums_of(SETS, 3, scores, weights)
    assert (sums["num_wrong"], sums["num_missed_labels"], sums["num_labels"]) == (1, 1, 4)
    assert sums["num_images"] == 3
    errors = error_percents(sums)
    assert errors == pytest.approx(
        {"error_percent": 100 / 3, "label_error_percent": 25.0, "almost_correct_percent": 100.0}
    )
    one = error_percents(sums_of(torch.tensor([0, 2, 1, 1]), 1, scores, weights))
    assert one == pytest.approx({"error_percent": 200 / 3})


def test_almost_correct_is_an_image_of_which_a_label_is_found() -> None:
    """As the authors' code counts: fewer labels missed than there are."""
    scores = torch.tensor(
        [[0.9, 0.8, 0.1, 0.1], [0.9, 0.1, 0.8, 0.1], [0.1, 0.1, 0.9, 0.8], [0.9, 0.1, 0.1, 0.8]]
    )
    labels = torch.tensor([[0, 1], [0, 1], [0, 1], [1, -1]])
    sums = sums_of(labels, 2, scores, torch.ones(4))
    assert error_percents(sums) == pytest.approx(
        {"error_percent": 75.0, "label_error_percent": 100 * 4 / 7, "almost_correct_percent": 50.0}
    )


def test_a_mixed_image_is_read_rightly_where_its_larger_share_is() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.9, 0.2], [0.1, 0.2, 0.9], [0.1, 0.9, 0.2]])
    shares = torch.tensor([[0.4, 0.6, 0.0], [0.4, 0.6, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 1.0]])
    assert sums_of(shares, 1, scores, torch.ones(4))["num_wrong"] == 2


def test_sets_are_nothing_for_a_network_with_one_label() -> None:
    with pytest.raises(
        ShapeError, match=r"labels \[4, 3\] are several an image, and the network has num_lab"
    ):
        sums_of(SETS, 1, torch.rand(4, 5), torch.ones(4))


VALIDATION: dict[str, Any] = {
    "kind": "validation", "step": 9, "epoch": 1.0, "error_percent": 8.2, "label_error_percent": 4.5,
    "loss": 0.2, "num_images": 1000, "time_s": 3.0,
}  # fmt: skip


def test_the_error_of_labels_is_stored_shown_and_drawn() -> None:
    line = json.dumps(VALIDATION).encode() + b"\n"
    assert parse_metrics(line) == [VALIDATION]
    shown = io.StringIO()
    display = Display(shown, plain=True)
    display._start = {"test_split": "test"}
    display(VALIDATION)
    assert "error_percent 8.20   label_error_percent 4.50  loss 0.2" in shown.getvalue()
    assert headline([VALIDATION]).endswith("error 8.20 % of 1,000 test images, 4.50 % of their labels")
    sets = np.array([[3, 8], [5, -1]]), np.array([[8, 3], [5, -1]])
    misread = np.array([[3, 1], [-1, -1]])
    images = np.zeros((2, 3, 3))
    figure = draw_overview([VALIDATION], Samples(images, images, *sets, sets[1]), list("0123456789"))
    assert {"3+8", "5"} <= {axes.get_title() for axes in figure.axes}
    assert "none: images have several labels" in [text.get_text() for text in figure.axes[2].texts]
    figure = draw_overview(
        [VALIDATION], Samples(images, images, sets[0], misread, misread), ["nineteen"] * 10
    )
    titles = {axes.get_title() for axes in figure.axes}
    assert {"ninet.+ninet.\nread as ninet.+ninet.", "nineteen\nread as none", "as none"} <= titles


def test_overview_reads_as_many_classes_as_an_image_has_labels() -> None:
    torch.manual_seed(0)
    network = CapsNet(
        (2, 11, 12), 5, conv_kernel=3, conv_channels=4, primary_types=2, primary_kernel=3
    ).eval()
    images = torch.rand(4, 2, 11, 12)
    predictions, right = _predict(network, images, SETS)
    order = network(images).scores.argsort(1, descending=True).tolist()
    for row, read, labels, fine in zip(order, predictions.tolist(), SETS.tolist(), right, strict=True):
        members = set(labels) - {-1}
        assert read == row[: len(members)] + [-1] * (3 - len(members))
        assert bool(fine) == (set(read) - {-1} == members)
