"""How a network routes images: figure A.1 of the paper, and maps of coupling over the image.

Both come from the logits of the reference of routing, computed in float64: late iterations of figure A.1 are
below the rounding of fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from capsdist.analysis.decoding import chosen_images, titles_of
from capsdist.analysis.drawing import displayable
from capsdist.analysis.mosaic import draw_mosaic, in_colour
from capsdist.analysis.subject import Drawn, NotDrawn, Subject
from capsdist.models import CapsuleNetwork, ClassCapsules
from capsdist.ops import lengths
from capsdist.routing import couple, logits_reference

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Grid", "LogitChange", "coupling_over_image", "draw_coupling", "logit_changes", "routed_logits",
]  # fmt: skip

_MOST_VOTES = 2**24
"""Numbers of votes that are in memory at a time (128 MiB); those of one image at least."""


class LogitChange(NamedTuple):
    """Means over images, children and parents, float64.

    change [R]: what an iteration adds to a logit, without its sign; difference [R - 1]: how far that is from
    what the iteration before added, from the second on. The first tends to the agreement with the final
    parents, the second to 0 as routing converges.
    """

    change: Tensor
    difference: Tensor


def logit_changes(network: nn.Module, images: Tensor, iterations: int = 10) -> LogitChange:
    """Return how far each of `iterations` routing iterations moves the logits b_ij of class capsules.

    Source: paper, appendix A and figure A.1. images: [B, C, H, W] as the network sees them. The network is
    evaluated with so many iterations, whatever number it was trained with.

    Raises:
        NotDrawn: the class capsules do not route by agreement. ShapeError: `iterations` is below 1.
    """
    change, difference = torch.zeros(iterations).double(), torch.zeros(iterations - 1).double()
    for logits in routed_logits(network, images, iterations + 1):
        added = logits.diff(dim=0)  # [R, b, I, J]
        change += added.abs().mean((2, 3)).sum(1)
        difference += added.diff(dim=0).abs().mean((2, 3)).sum(1)
    return LogitChange(change / len(images), difference / len(images))


def check_routed(network: nn.Module) -> None:
    """Raise NotDrawn unless dynamic routing feeds the class capsules of `network`."""
    if not isinstance(network, CapsuleNetwork) or not isinstance(network.class_capsules, ClassCapsules):
        raise NotDrawn(f"{type(network).__name__} has no class capsules that dynamic routing feeds")


@torch.no_grad()
def routed_logits(network: nn.Module, images: Tensor, iterations: int) -> Iterator[Tensor]:
    """Yield the logits [R, b, I, J] of all iterations, float64, a few of `images` [B, C, H, W] at a time.

    Raises:
        NotDrawn: the class capsules do not route by agreement.
    """
    check_routed(network)
    wide = copy.deepcopy(network).double()
    assert isinstance(wide, CapsuleNetwork)
    layer = wide.class_capsules
    assert isinstance(layer, ClassCapsules)
    votes_of_one = layer.packed_weights.numel() // layer.child_dim
    for part in images.double().split(max(1, _MOST_VOTES // votes_of_one)):
        yield logits_reference(
            wide.child_poses(part),
            layer.weights,
            iterations,
            bias=layer.bias,
            log_priors=layer.log_priors,
            none_of_the_above=layer.routing.none_of_the_above,
        )


class Grid(NamedTuple):
    """Where children of class capsules stand on an image: rows and columns, pixels from one to the next.

    Their centre is that of the image, as for convolutions without padding, or with equal padding around.
    """

    rows: int
    columns: int
    pitch: int


def grid_of(network: CapsuleNetwork) -> Grid:
    """Return the positions of the children of the class capsules of `network`.

    Raises:
        NotDrawn: larger images have as many, so that no position belongs to a part of the image.
    """
    channels, height, width = network.image_shape
    more = 64  # a multiple of the steps of all convolutions
    rows, columns = _positions(network, channels, height, width)
    added = _positions(network, channels, height + more, width + more)[0] - rows
    if added < 1:
        raise NotDrawn("the positions of the capsules do not follow the size of the image")
    return Grid(rows, columns, more // added)


@torch.no_grad()
def _positions(network: CapsuleNetwork, channels: int, height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of those children that images of this size have."""
    weight = next(network.parameters())
    features = network.features(torch.zeros(1, channels, height, width).to(weight))
    rows, columns = network.child_sides(features.shape[2], features.shape[3])
    return rows, columns


def coupling_over_image(network: CapsuleNetwork, images: Tensor, parents: Tensor) -> Tensor:
    """Return the coupling with one parent by position, summed over types of capsules: float64 [B, H', W'].

    images: [B, C, H, W]; parents: int64 [B]. The coupling c_ij is that of the last iteration, of as many as
    the network was trained with; it is types / J at each position where children are undecided.

    Raises:
        NotDrawn: the class capsules do not route by agreement.
    """
    check_routed(network)
    grid, routing = grid_of(network), network.class_capsules.routing
    parts = [
        couple(logits[-1], routing.none_of_the_above)
        for logits in routed_logits(network, images, routing.iterations)
    ]
    own = torch.cat(parts)[torch.arange(len(images)), :, parents]  # [B, I]
    return own.unflatten(1, (-1, grid.rows, grid.columns)).sum(1)


def draw_coupling(subject: Subject, num_images: int) -> Iterator[Drawn]:
    """Yield images and, laid over each, the coupling of its primary capsules with the longest parent."""
    images, network = subject.images, subject.capsules
    chosen = chosen_images(subject.images, num_images)
    winners = lengths(subject.poses(chosen)).argmax(1)
    coupling = coupling_over_image(network, images.seen[chosen], winners)
    shown = displayable(images.shown[chosen].numpy())
    overlaid = _overlaid(shown, coupling.numpy(), grid_of(network))
    texts, colours = titles_of(subject, chosen)
    heading = subject.heading("Coupling with the longest capsule, from 0 (dark) to the largest of the image")
    tiles = np.stack([in_colour(shown), overlaid])
    figure = draw_mosaic(tiles, ("image", "coupling"), texts, heading, colours=colours)
    grid = grid_of(network)
    types = network.class_capsules.num_children // (grid.rows * grid.columns)
    numbers = subject.facts(chosen) | {
        "capsules": winners.tolist(),
        "coupling": coupling.tolist(),
        "undecided": types / (network.num_classes + network.class_capsules.routing.none_of_the_above),
        "pixels_between_positions": grid.pitch,
    }
    yield Drawn("coupling", figure, numbers)


def _overlaid(shown: np.ndarray, maps: np.ndarray, grid: Grid) -> np.ndarray:
    """Return images [N, H, W] or [N, H, W, 3] under their maps [N, H', W'] in colour: [N, H, W, 3].

    A position is a square of `grid.pitch` pixels; half a pixel is lost where the sides do not divide.
    """
    import matplotlib

    found = 0.5 * in_colour(shown)
    height, width = found.shape[1:3]
    top, left = ((side - num * grid.pitch) // 2 for side, num in ((height, grid.rows), (width, grid.columns)))
    scaled = maps / maps.max((1, 2), keepdims=True).clip(1e-12)
    heat = matplotlib.colormaps["inferno"](scaled.repeat(grid.pitch, 1).repeat(grid.pitch, 2))[..., :3]
    inside = heat[:, max(0, -top) : height - top, max(0, -left) : width - left]
    place = found[:, max(0, top) :, max(0, left) :][:, : inside.shape[1], : inside.shape[2]]
    place[:] = 0.35 * place + 0.65 * inside
    return found
