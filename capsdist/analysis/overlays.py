"""Overlaid digits taken apart: figure 5 of the paper, in colour, and which pixel belongs to which digit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capsdist.analysis.decoding import absent_class, chosen_images
from capsdist.analysis.drawing import ORANGE, displayable
from capsdist.analysis.mosaic import draw_mosaic, in_colour
from capsdist.analysis.subject import Drawn, NotDrawn, Subject, displayed
from capsdist.data.format.source import open_split
from capsdist.data.recipes.source import Recipes
from capsdist.ops.predictions import swapped

__all__ = ["assigned", "draw_overlays", "matched", "red_and_green", "segmented"]

LIT = 0.5
"""Grey level above which a pixel belongs to a digit."""


def draw_overlays(subject: Subject, num_images: int) -> Iterator[Drawn]:
    """Yield figure 5 of the paper: overlaid digits, the first of them red, the second green, both yellow.

    Rows: the image; the two digits that it is made of; what each of the two longest capsules draws; the
    image in the colours of the capsule that explains a pixel; and, in green, a class that is not there.
    """
    images, source = subject.images, open_split(subject.split)
    if images.labels.dim() == 1 or images.labels.shape[1] != 2 or not isinstance(source, Recipes):
        raise NotDrawn(f"{subject.split} holds no pairs of images (multimnist does)")
    if images.shown.shape[1] != 1:
        raise NotDrawn(f"{subject.split} has {images.shown.shape[1]} channels; the colours need grey images")
    chosen = chosen_images(subject.images, num_images)
    labels = images.labels[chosen]
    read = matched(images.predictions[chosen], labels)
    poses = subject.poses(chosen)
    wrong = absent_class(poses, labels, read)
    shown = displayable(images.shown[chosen].numpy())
    first, second = (subject.decoded(poses, read[:, each]) for each in range(2))
    rows = {
        "image": in_colour(shown),
        "its digits": red_and_green(*_digits(subject, source, chosen)),
        "two longest capsules": red_and_green(first, second),
        "segmentation": segmented(shown, first, second),
        "with a class that is absent": red_and_green(
            subject.decoded(poses, labels[:, 0]), subject.decoded(poses, wrong)
        ),
    }
    columns = [
        f"{_names(pair, subject)}{'' if right else f' as {_names(taken, subject)}'}\n"
        f"absent: {subject.classes[other]}"
        for pair, taken, right, other in zip(labels, read, images.right[chosen], wrong, strict=True)
    ]
    colours = ["black" if right else ORANGE for right in images.right[chosen]]
    heading = subject.heading("Figure 5")
    figure = draw_mosaic(np.stack(list(rows.values())), list(rows), columns, heading, colours=colours)
    numbers = subject.facts(chosen) | {
        "red_and_green": read.tolist(),
        "absent": wrong.tolist(),
        "segmentation": _measured(subject, source),
    }
    yield Drawn("figure_5", figure, numbers)


def _names(pair: Tensor, subject: Subject) -> str:
    """Return the names of two classes, that of the red one first."""
    return "+".join(subject.classes[number] for number in pair)


def matched(predictions: Tensor, labels: Tensor) -> Tensor:
    """Return predictions [B, 2] with each that is also a label in the place of that label [B, 2]."""
    return torch.where(swapped(predictions, labels)[:, None], predictions.flip(1), predictions)


def red_and_green(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return two grey images [N, H, W] as red and green [N, H, W, 3], yellow where both are bright."""
    return np.stack([first, second, np.zeros_like(first)], axis=-1)


def segmented(images: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return grey images [N, H, W] in the colours of two reconstructions: [N, H, W, 3].

    A pixel keeps its brightness. It is red where only `first` is bright, green where only `second` is,
    yellow where both are alike.
    """
    brighter = np.maximum(first, second).clip(1e-6)
    return red_and_green(images * first / brighter, images * second / brighter)


def assigned(digits: np.ndarray, drawn: np.ndarray) -> tuple[int, int]:
    """Return how many pixels belong to one digit only, and how many of them its own capsule draws brighter.

    digits, drawn: [N, 2, H, W], the digits of images and what the capsules of their classes draw. A pixel
    belongs to a digit where that is brighter than `LIT`.
    """
    lit = digits > LIT
    one = lit[:, 0] != lit[:, 1]
    return int(one.sum()), int((one & (lit[:, 0] == (drawn[:, 0] > drawn[:, 1]))).sum())


def _digits(subject: Subject, source: Recipes, ids: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the two digits of images, each [n, H, W], cut as the images are."""
    show = displayed(subject.config)
    both = torch.from_numpy(source.separate(ids.numpy()))
    first, second = (displayable(show.evaluated(both[:, each]).numpy()) for each in range(2))
    return first, second


def _measured(subject: Subject, source: Recipes) -> dict[str, Any]:
    """Return how well the capsules divide the pixels of all images that were read rightly."""
    images, pixels, right = subject.images.right.nonzero().flatten(), 0, 0
    for part in images.split(100):
        poses, labels = subject.poses(part), subject.images.labels[part]
        drawn = np.stack([subject.decoded(poses, labels[:, each]) for each in range(2)], axis=1)
        found = assigned(np.stack(_digits(subject, source, part), axis=1), drawn)
        pixels, right = pixels + found[0], right + found[1]
    percent = 100 * right / pixels if pixels else None
    return {"num_images": len(images), "num_pixels": pixels, "own_capsule_percent": percent}
