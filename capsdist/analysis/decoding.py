"""What a decoder draws: figures 3 and 4 of the paper, and images decoded as right and as wrong classes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from capsdist.analysis.drawing import ORANGE, class_names, displayable
from capsdist.analysis.mosaic import draw_mosaic
from capsdist.analysis.overview import picked
from capsdist.analysis.subject import NO_DECODER, Drawn, NotDrawn, ReadImages, Subject, in_turn
from capsdist.config.models import find_family
from capsdist.ops import lengths
from capsdist.ops.targets import class_mask

__all__ = [
    "OFFSETS", "absent_class", "chosen_images", "draw_classes", "draw_perturbations", "draw_triples",
    "perturbed", "titles_of",
]  # fmt: skip

OFFSETS = tuple(round(0.05 * step, 2) for step in range(-5, 6))
"""What is added to one dimension of a capsule: -0.25 to 0.25 in steps of 0.05 (paper, figure 4)."""
_TRIPLES = 8  # columns of figure 3: four images read rightly, two misread ones twice


def draw_triples(subject: Subject, num_images: int) -> Iterator[Drawn]:
    """Yield figure 3 of the paper: images and reconstructions for (label, prediction, target).

    Two images are misread ones if there are any, decoded as what they are and as what they were read as.
    """
    if not find_family(subject.config.model.kind).classifies:
        raise NotDrawn("the network names no classes")
    samples = picked(subject.network, subject.images, _TRIPLES)
    if samples.reconstructions is None:
        raise NotDrawn(NO_DECODER)
    assert samples.ids is not None
    triples = list(zip(samples.labels, samples.predictions, samples.targets, strict=True))
    columns = [f"({', '.join(class_names(each, subject.classes) for each in triple)})" for triple in triples]
    wrong = [set(np.atleast_1d(label)) != set(np.atleast_1d(read)) for label, read, _ in triples]
    figure = draw_mosaic(
        np.stack([samples.images, samples.reconstructions]),
        ("input", "output"),
        columns,
        subject.heading("Figure 3, (label, prediction, target)"),
        colours=[ORANGE if each else "black" for each in wrong],
    )
    numbers = subject.facts(torch.from_numpy(samples.ids)) | {
        "targets": samples.targets.tolist(),
        "squared_error": _squared_errors(samples.reconstructions, samples.images),
    }
    yield Drawn("figure_3", figure, numbers)


def draw_classes(subject: Subject, num_images: int) -> Iterator[Drawn]:
    """Yield images decoded as their class, as the class that was read, and as one that is neither.

    The last is the class of the longest other capsule. Images of all classes in turn, then two misread ones.
    """
    images, chosen = subject.images, chosen_images(subject.images, num_images)
    poses, labels, read = subject.poses(chosen), images.labels[chosen], images.predictions[chosen]
    absent = absent_class(poses, labels, read)
    targets = (labels, read, absent)
    original = displayable(images.shown[chosen].numpy())
    decoded = [subject.decoded(poses, each) for each in targets]
    columns, colours = titles_of(subject, chosen)
    columns = [
        f"{text}\nneither: {subject.classes[other]}" for text, other in zip(columns, absent, strict=True)
    ]
    rows = ("image", "as its class", "as it was read", "as neither")
    heading = subject.heading("Reconstructions")
    figure = draw_mosaic(np.stack([original, *decoded]), rows, columns, heading, colours=colours)
    numbers = subject.facts(chosen) | {
        "absent": absent.tolist(),
        "lengths": lengths(poses).tolist(),
        "squared_error": {
            name: _squared_errors(each, original)
            for name, each in zip(("label", "prediction", "absent"), decoded, strict=True)
        },
    }
    yield Drawn("reconstructions", figure, numbers)


def draw_perturbations(subject: Subject, num_images: int) -> Iterator[Drawn]:
    """Yield figure 4 of the paper for one image of each class: a row for each dimension of its capsule.

    Of each of `num_images` images the longest capsule is decoded, one of its dimensions moved by `OFFSETS`.
    """
    chosen = chosen_images(subject.images, num_images, num_misread=0)
    for number, poses in zip(chosen.tolist(), subject.poses(chosen), strict=True):
        winner = int(lengths(poses).argmax())
        moved = perturbed(poses, winner)  # [E, 11, J, E]
        drawn = subject.decoded(moved.flatten(0, 1), torch.full((moved.shape[0] * moved.shape[1],), winner))
        tiles = drawn.reshape(*moved.shape[:2], *drawn.shape[1:])
        name = subject.classes[winner]
        figure = draw_mosaic(
            tiles,
            [f"dimension {dim}" for dim in range(len(tiles))],
            [f"{offset:+.2f}" for offset in OFFSETS],
            subject.heading(f"Figure 4, image {number} read as {name}"),
            tile_inches=0.55,
        )
        still = tiles[:, len(OFFSETS) // 2, None]
        change = np.abs(tiles - still).reshape(*tiles.shape[:2], -1).mean(2)
        numbers = subject.facts(torch.tensor([number])) | {
            "capsule": winner, "class": name, "pose": poses[winner].tolist(), "offsets": list(OFFSETS),
            "mean_pixel_change": change.tolist(),
        }  # fmt: skip
        yield Drawn(f"figure_4_{number}", figure, numbers)


def perturbed(poses: Tensor, winner: int) -> Tensor:
    """Return poses [J, E] with dimension d of capsule `winner` moved by offset o: [E, 11, J, E] of (d, o)."""
    size = poses.shape[1]
    moved = poses.repeat(size, len(OFFSETS), 1, 1)
    dims = torch.arange(size)
    moved[dims, :, winner, dims] += torch.tensor(OFFSETS, dtype=poses.dtype)
    return moved


def absent_class(poses: Tensor, *present: Tensor) -> Tensor:
    """Return the class of the longest capsule of poses [B, J, E] that is none of the given ones: int64 [B].

    present: classes of each image, int64 [B] or [B, K].

    Raises:
        NotDrawn: an image has no other class.
    """
    scores = lengths(poses)
    taken = torch.stack([class_mask(each, scores.shape[1]) for each in present]).any(0)
    if taken.all(1).any():
        raise NotDrawn(f"an image has all {scores.shape[1]} classes as labels and predictions")
    return scores.masked_fill(taken, -1).argmax(1)


def chosen_images(images: ReadImages, num_images: int, num_misread: int = 2) -> Tensor:
    """Return the numbers of images that are read rightly, of all classes in turn, then of misread ones.

    num_misread: so many misread ones, if there are, but one image is read rightly; where none is, all are
    misread.
    """
    if not images.right.any():
        return in_turn(images.labels, ~images.right, num_images)
    misread = (~images.right).nonzero().flatten()[: min(num_misread, num_images - 1)]
    return torch.cat([in_turn(images.labels, images.right, num_images - len(misread)), misread])


def titles_of(subject: Subject, chosen: Tensor) -> tuple[list[str], list[str]]:
    """Return what stands above each image: its class, and that which was read if it is another; colours."""
    images = subject.images
    pairs = zip(images.labels[chosen].numpy(), images.predictions[chosen].numpy(), strict=True)
    titles = [tuple(class_names(each, subject.classes) for each in pair) for pair in pairs]
    texts = [label if label == read else f"{label} as {read}" for label, read in titles]
    return texts, ["black" if label == read else ORANGE for label, read in titles]


def _squared_errors(drawn: np.ndarray, images: np.ndarray) -> list[float]:
    """Return the sum of squared differences of pixels of each image; of colour images over channels too."""
    return ((drawn - images) ** 2).reshape(len(images), -1).sum(1).tolist()
