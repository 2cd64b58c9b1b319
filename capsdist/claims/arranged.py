"""Digits in parts that are permuted (the Picasso problem), and two equal digits close together (crowding)."""

from __future__ import annotations

import torch
from torch import Tensor

from capsdist.claims.experiment import Claim, Experiment, Values, mean_of
from capsdist.claims.subject import Images, Subject
from capsdist.data.transforms.geometry import largest_part, moved, resized
from capsdist.errors import ShapeError

__all__ = ["CROWDING", "SCRAMBLED", "partners", "scrambled", "separation", "side_by_side", "smaller"]

_GRIDS = (1, 2, 4, 7)  # patches a side; of 28 pixels each divides them
_DISTANCES = (10, 8, 6, 4, 2, 0)  # pixels from centre to centre
_SEED = 0  # of the permutations
_SIDE = 18  # pixels of a digit's image among two: at the largest distance both are whole, 28 = 18 + 10


def scrambled(pixels: Tensor, grid: int, seed: int = 0) -> Tensor:
    """Return images [N, C, H, W] cut into `grid` x `grid` patches, which are permuted at random.

    Every image has a permutation of its own, which moves one patch at least; with `grid` 1 nothing changes.
    Sides that `grid` does not divide are an error.

    Raises:
        ShapeError: see above.
    """
    num, channels, height, width = pixels.shape
    if height % grid or width % grid:
        raise ShapeError(f"images are {height} x {width}, which {grid} patches a side do not divide")
    if grid == 1:
        return pixels
    generator = torch.Generator().manual_seed(seed)
    places = grid * grid
    order = torch.rand(num, places, generator=generator).argsort(1)
    same = (order == torch.arange(places)).all(1)
    order[same] = order[same].roll(1, 1)
    patches = pixels.reshape(num, channels, grid, height // grid, grid, width // grid)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [N, patch, C, h, w]
    taken = patches[torch.arange(num)[:, None], order]
    taken = taken.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5)
    return taken.reshape(num, channels, height, width)


def separation(intact: Tensor, other: Tensor) -> float:
    """Return the share of pairs in which the intact image has the larger confidence; equal ones count half.

    That is the area under the ROC curve of a detector that calls an image intact by its confidence: 1 tells
    all, 0.5 nothing. It compares lengths of capsules and probabilities by order alone.

    Shapes: confidences [N] and [M] of the two kinds.
    """
    values, ranks = torch.cat([intact, other]).unique(return_inverse=True)
    counts = torch.bincount(ranks, minlength=len(values)).double()
    middle = counts.cumsum(0) - (counts - 1) / 2  # mean rank of equal values, from 1
    num, others = len(intact), len(other)
    total = middle[ranks[:num]].sum().item()
    return (total - num * (num + 1) / 2) / (num * others)


def smaller(pixels: Tensor, side: int = _SIDE) -> Tensor:
    """Return images [N, C, H, W] resized to `side` x `side` pixels in the middle of a black image."""
    height, width = pixels.shape[2:]
    top, left = (height - side) // 2, (width - side) // 2
    out = torch.zeros_like(pixels)
    part = largest_part((height, width), (side, side))
    out[:, :, top : top + side, left : left + side] = resized(pixels, part, (side, side))
    return out


def partners(labels: Tensor) -> Tensor:
    """Return for each image the number of the next one of its class, in a circle: its own if it is alone."""
    found = torch.arange(len(labels))
    for number in labels.unique():
        rows = (labels == number).nonzero().flatten()
        found[rows] = rows.roll(-1)
    return found


def side_by_side(first: Tensor, second: Tensor, distance: int) -> tuple[Tensor, Tensor]:
    """Return pairs of images `distance` pixels apart, side by side, and each first image alone at its place.

    The pixels of both are added and clipped at 1, as the paper does (section 6.1).
    """
    left = -(distance // 2)
    alone = moved(first, 0, left)
    return (alone + moved(second, 0, left + distance)).clamp(max=1), alone


def _scrambled(subject: Subject, images: Images) -> Values:
    rows = [subject.confidences(scrambled(images.pixels, grid, _SEED)) for grid in _GRIDS]
    largest = [row.max(1) for row in rows]
    return {
        "confidence": [each.values.double().mean().item() for each in largest],
        "same_class_percent": [
            100 * (each.indices == images.labels).double().mean().item() for each in largest
        ],
        "separation": [separation(largest[0].values, each.values) for each in largest],
    }


def _crowding(subject: Subject, images: Images) -> Values:
    first = smaller(images.pixels)
    second = first[partners(images.labels)]
    found: dict[str, list[float]] = {name: [] for name in CROWDING.series}
    for distance in _DISTANCES:
        kinds = zip(("", "alone_"), side_by_side(first, second, distance), strict=True)
        for prefix, pixels in kinds:
            scores = subject.confidences(pixels)
            wrong = (scores.argmax(1) != images.labels).double().mean().item()
            found[f"{prefix}error_percent"].append(100 * wrong)
            right = scores.gather(1, images.labels[:, None]).double()
            found[f"{prefix}confidence"].append(right.mean().item())
    return found


def _crowded(values: Values) -> float:
    """Return how many percent more pairs than single digits are misread, mean of the distances."""
    return mean_of("error_percent")(values) - mean_of("alone_error_percent")(values)


SCRAMBLED = Experiment(
    "scrambled",
    "Scrambled parts: digits cut into patches that are permuted",
    "patches a side",
    _GRIDS,
    {
        "confidence": "mean confidence (length, probability)",
        "same_class_percent": "still read as the digit, percent",
        "separation": "intact more confident than scrambled, share",
    },
    (
        Claim(
            "A capsule network tells scrambled digits from whole ones by its confidence",
            "share of pairs in which the whole digit has the larger confidence, mean of the grids,",
            mean_of("separation", 1), "higher", than=0.5,
        ),
        Claim(
            "A capsule network tells scrambled digits from whole ones better than a CNN",
            "share of pairs in which the whole digit has the larger confidence, mean of the grids,",
            mean_of("separation", 1), "higher",
        ),
    ),
    _scrambled,
    {"seed": _SEED},
)  # fmt: skip

CROWDING = Experiment(
    "crowding",
    "Crowding: two digits of one class at falling distance, against the first of them alone",
    "distance of the centres, pixels",
    _DISTANCES,
    {
        "error_percent": "pairs: error in percent",
        "alone_error_percent": "one alone: error in percent",
        "confidence": "pairs: mean confidence in the class",
        "alone_confidence": "one alone: mean confidence in the class",
    },
    (
        Claim(
            "Two equal digits close together confuse a capsule network more than a CNN",
            "errors of pairs beyond those of single digits, percent, mean of the distances,",
            _crowded, "higher",
        ),
    ),
    _crowding,
    {"side": _SIDE},
)  # fmt: skip
