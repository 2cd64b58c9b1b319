"""How what capsules recognise follows a known shift: figure and R2 of transforming auto-encoders.

Source: Hinton, Krizhevsky, Wang, "Transforming Auto-encoders" (2011), section 2, figure 2: places that are
recognised in an image against those in its shifted copy. The known shift enters nowhere: places to which it
was added would follow it whatever was learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from capsdist.analysis.drawing import BLUE, GREY, ORANGE, STYLE, displayable
from capsdist.analysis.mosaic import draw_mosaic
from capsdist.analysis.subject import Drawn, NotDrawn, Subject, in_turn
from capsdist.data.transforms import known_shifts
from capsdist.data.transforms.geometry import shifted
from capsdist.models.transforming_autoencoder import TransformingAutoencoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["R2", "Followed", "draw_known_shifts", "follow", "shift_r2"]

_SHOWN = 3  # capsules with panels of their own
_BATCH = 250


@dataclass(frozen=True)
class Followed:
    """What is recognised in N images and in their copies under known shifts.

    differences: [N, K, 2], pixels, places in the copies less places in the images, to the right and down;
    weights: [N, K], the probability that capsule k is in both, the product of those of image and copy;
    shifts: [N, 2], pixels, known.
    """

    differences: Tensor
    weights: Tensor
    shifts: Tensor

    @property
    def means(self) -> Tensor:
        """The shift of each image as its capsules tell it: weighted means of the differences, [N, 2]."""
        return (self.weights[..., None] * self.differences).sum(1) / self.weights.sum(1, keepdim=True)


@dataclass(frozen=True)
class R2:
    """Share of the variance of known shifts that is told without them, (right, down); at most 1.

    R2 = 1 - sum w (told - known)^2 / sum w (known - mean known)^2; no line is fitted.
    images: told are the means over the capsules of an image by probability, and w = 1. capsules: told is the
    difference of a single capsule, and w is its probability, over all capsules and images.
    """

    images: tuple[float, float]
    capsules: tuple[float, float]


@torch.no_grad()
def follow(network: TransformingAutoencoder, images: Tensor, shifts: Tensor, limit: int) -> Followed:
    """Return what `network` recognises in `images` and in them shifted.

    images: float [N, C, H, W], as the network sees them; shifts: int64 [N, 2], pixels to the right and down,
    from -limit to limit.
    """
    differences, weights = [], []
    for part, by in zip(images.split(_BATCH), shifts.split(_BATCH), strict=True):
        before, after = network.recognise(part), network.recognise(shifted(part, by, limit))
        differences.append(after.places - before.places)
        weights.append(after.probabilities * before.probabilities)
    return Followed(torch.cat(differences).double(), torch.cat(weights).double(), shifts.double())


def shift_r2(found: Followed) -> R2:
    """Return R2 of what is told against the known shifts; not finite where these are all the same."""

    def share(told: Tensor, known: Tensor, weights: Tensor) -> tuple[float, float]:
        weights = weights[:, None]
        mean = (weights * known).sum(0) / weights.sum()
        right, down = 1 - (weights * (told - known) ** 2).sum(0) / (weights * (known - mean) ** 2).sum(0)
        return float(right), float(down)

    num, capsules, _ = found.differences.shape
    known = found.shifts[:, None].expand(num, capsules, 2).flatten(0, 1)
    return R2(
        share(found.means, found.shifts, found.weights.new_ones(num)),
        share(found.differences.flatten(0, 1), known, found.weights.flatten()),
    )


@torch.no_grad()
def draw_known_shifts(subject: Subject, num_images: int) -> Iterator[Drawn]:
    """Yield two figures: what is told against known shifts, with R2, and images, shifted and as drawn.

    All images of the subject are measured, each under the shift that evaluations give it.

    Raises:
        NotDrawn: the network is no transforming auto-encoder.
    """
    network, images = subject.network, subject.images
    if not isinstance(network, TransformingAutoencoder):
        raise NotDrawn(f"a network of the family {subject.config.model.kind} knows no shifts")
    limit, seed = subject.config.model.known_shift, subject.config.train.seed
    shifts = known_shifts(torch.arange(len(images.seen)), seed, 0, limit)
    found = follow(network, images.seen, shifts, limit)
    r2 = shift_r2(found)
    words = f"Recognised shifts, R2 {r2.images[0]:.2f} right and {r2.images[1]:.2f} down"
    subject.log(f"{subject.place}: {words[0].lower()}{words[1:]}, {len(shifts):,} images")
    likely = found.weights.mean(0).argsort(descending=True)[:_SHOWN]
    numbers = {
        "checkpoint": subject.source, "step": subject.step, "split": subject.split, "note": subject.note,
        "num_images": len(shifts), "max_shift": limit, "r2": asdict(r2),
        "least_r2": min(r2.images), "least_capsule_r2": min(r2.capsules), "capsules": likely.tolist(),
        "known": shifts.tolist(), "told": found.means.tolist(),
        "told_by_capsules": found.differences[:, likely].tolist(),
        "probabilities": found.weights[:, likely].tolist(),
    }  # fmt: skip
    yield Drawn("known_shifts", _draw_told(found, likely, subject.heading(words)), numbers)

    chosen = in_turn(images.labels, images.right, num_images)
    seen, by = images.seen[chosen], shifts[chosen]
    wanted, drawn = shifted(seen, by, limit), network(seen, by.to(seen.dtype)).reconstructions
    assert drawn is not None
    tiles = np.stack([displayable(each.numpy()) for each in (seen, wanted, drawn)])
    columns = [f"{right:+d}, {down:+d}" for right, down in by.tolist()]
    heading = subject.heading("Images, their copies shifted by pixels right and down, and what is drawn")
    figure = draw_mosaic(tiles, ("image", "shifted", "drawn"), columns, heading)
    numbers = subject.facts(chosen) | {
        "known": by.tolist(), "squared_error": (drawn - wanted).square().flatten(1).sum(1).tolist(),
    }  # fmt: skip
    yield Drawn("known_shifts_images", figure, numbers)


def _draw_told(found: Followed, capsules: Tensor, heading: str) -> Figure:
    """Draw the shifts that images, and the likeliest capsules, tell against known ones, a row a direction."""
    import matplotlib
    from matplotlib.figure import Figure

    limit = max(1, int(found.shifts.abs().max()))
    spread = 0.6 * torch.rand(len(found.shifts), generator=torch.Generator().manual_seed(0)) - 0.3
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(3.1 * (1 + len(capsules)), 6.6), dpi=110, facecolor="white", layout="constrained"
        )
        figure.suptitle(heading, x=0.012, ha="left", size=9, weight="bold", parse_math=False)
        grid = figure.subplots(2, 1 + len(capsules), squeeze=False)
        for row, direction in enumerate(("right", "down")):
            known = (found.shifts[:, row] + spread).numpy()
            _panel(grid[row, 0], known, found.means[:, row].numpy(), None, limit, "mean of all capsules")
            for axes, capsule in zip(grid[row, 1:], capsules.tolist(), strict=True):
                told, weights = found.differences[:, capsule, row], found.weights[:, capsule]
                _panel(axes, known, told.numpy(), weights.numpy(), limit, f"capsule {capsule}")
            grid[row, 0].set_ylabel(f"recognised shift {direction}, pixels")
        for axes in grid[-1]:
            axes.set_xlabel("known shift, pixels")
    return figure


def _panel(
    axes: Axes, known: np.ndarray, told: np.ndarray, weights: np.ndarray | None, limit: int, title: str
) -> None:
    """Draw points over the line of equal shifts; points of small `weights`, in [0, 1], are pale."""
    ends = -limit - 0.5, limit + 0.5
    axes.plot(ends, ends, color=GREY, linewidth=0.8)
    alpha: Any = 0.35 if weights is None else weights.clip(0.02, 1)
    axes.scatter(known, told, s=4, color=ORANGE if weights is None else BLUE, alpha=alpha, linewidths=0)
    axes.set(xlim=ends, ylim=(-2 * limit, 2 * limit))
    axes.set_title(title)
