"""Networks of matrix capsules and convolutional capsules: counts, shapes, refusals, and that they learn."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from capsdist.config import get_preset
from capsdist.config.em_capsnet import SpreadLoss, spread_loss_at
from capsdist.errors import ShapeError
from capsdist.models import build_model
from capsdist.models.conv_capsules import ConvCapsules, SharedClassCapsules, coordinates
from capsdist.models.em_capsnet import EMCapsNet
from capsdist.models.matrix_layers import MatrixCapsules, MatrixClassCapsules, MatrixConvCapsules
from capsdist.ops import lengths, margin_loss, spread_loss, squash


@pytest.mark.parametrize(("preset", "number"), [("smallnorb_em", 317_194), ("smallnorb_em_small", 68_754)])
def test_the_presets_have_the_parameters_of_the_papers_sizes(preset: str, number: int) -> None:
    config = get_preset(preset)
    network = build_model(config.model, config.routing)
    assert sum(parameter.numel() for parameter in network.parameters()) == number


def places_in_loops(grid: tuple[int, ...]) -> list[list[float]]:
    """Row and column, or one of them, of each position, counted out."""
    return [
        [(place + 0.5) / size - 0.5 for place, size in zip(position, grid, strict=True)]
        for position in itertools.product(*map(range, grid))
    ]


@pytest.mark.parametrize("grid", [(5, 7), (3, 1), (11,)])
def test_coordinates_are_exact_in_float64(grid: tuple[int, ...]) -> None:
    seed = random.randrange(1 << 30)
    torch.manual_seed(seed)
    places = places_in_loops(grid)
    layer = SharedClassCapsules(2, 3, 4, 5, num_directions=len(grid), iterations=1).double()
    poses = torch.randn(1, *grid, 2, 3, dtype=torch.float64)
    totals = torch.zeros(4, 5, dtype=torch.float64)
    for place, children in zip(places, poses[0].flatten(0, -3), strict=True):
        for child, j in itertools.product(range(2), range(4)):
            totals[j] += layer.packed_weights[j, :, :, child] @ children[child] / 4
            for dim, number in enumerate(place):
                totals[j, dim] += number / 4
    torch.testing.assert_close(
        layer(poses)[0], squash(totals), atol=1e-12, rtol=0, msg=lambda text: f"seed {seed}: {text}"
    )

    em = MatrixClassCapsules(2, 4, num_directions=len(grid), side=3, iterations=1).double()
    children = MatrixCapsules(*(each.double() for each in matrices(*grid, types=2, side=3)))
    sums, weights = torch.zeros(4, 3, 3, dtype=torch.float64), children.activations[0].flatten(0, -2)
    for number, (place, own) in enumerate(zip(places, children.poses[0].flatten(0, -4), strict=True)):
        for child, j in itertools.product(range(2), range(4)):
            vote = own[child] @ em.matrices[0, child, j]
            vote[: len(place), -1] += torch.tensor(place, dtype=torch.float64)
            sums[j] += weights[number, child] * vote
    found = em(children).poses[0]
    torch.testing.assert_close(
        found, sums / weights.sum(), atol=1e-12, rtol=0, msg=lambda text: f"seed {seed}: {text}"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_coordinates_of_short_numbers_are_in_fp32(dtype: torch.dtype) -> None:
    found, right = coordinates((7, 9), torch.zeros(1, dtype=dtype)), torch.tensor(places_in_loops((7, 9)))
    torch.testing.assert_close(found, right, atol=1e-7, rtol=0)


def matrices(*grid: int, types: int = 3, side: int = 4) -> MatrixCapsules:
    return MatrixCapsules(torch.randn(2, *grid, types, side, side), torch.rand(2, *grid, types))


@pytest.mark.parametrize(("kernel", "stride", "padding", "grid", "found"), [
    (3, 2, "valid", (7, 9), (3, 4)), ((3, 1), (2, 1), "same", (5, 4), (3, 4)),
    ((4,), (3,), "valid", (11,), (3,)),
])  # fmt: skip
def test_layers_take_any_grid_in_one_or_two_directions(
    kernel: int | tuple[int, ...], stride: int | tuple[int, ...], padding: str, grid: tuple[int, ...],
    found: tuple[int, ...],
) -> None:  # fmt: skip
    layer = ConvCapsules(3, 5, 4, 6, kernel, stride, padding)  # type: ignore[arg-type]
    assert layer.parent_shape(grid) == found
    assert layer(torch.randn(2, *grid, 3, 5)).shape == (2, *found, 4, 6)
    em = MatrixConvCapsules(3, 4, kernel, stride, padding)  # type: ignore[arg-type]
    poses, activations = em(matrices(*grid))
    assert (poses.shape, activations.shape) == ((2, *found, 4, 4, 4), (2, *found, 4))
    classes = MatrixClassCapsules(3, 5, num_directions=len(grid))
    assert classes(matrices(*grid)).activations.shape == (2, 5)
    shared = SharedClassCapsules(3, 5, 4, 6, num_directions=len(grid))
    assert shared(torch.randn(2, *grid, 3, 5)).shape == (2, 4, 6)


def test_coordinates_tell_positions_apart_although_weights_are_shared() -> None:
    torch.manual_seed(0)
    for add in (False, True):
        classes = MatrixClassCapsules(2, 3, add_coordinates=add)
        poses, activations = matrices(3, 4, types=2)
        moved = MatrixCapsules(poses.flip(1), activations.flip(1))
        same = torch.allclose(
            classes(MatrixCapsules(poses, activations)).poses, classes(moved).poses, atol=1e-5
        )
        assert same is not add
        shared = SharedClassCapsules(2, 4, 3, 6, add_coordinates=add)
        children = torch.randn(2, 3, 4, 2, 4)
        assert torch.allclose(shared(children), shared(children.flip(1)), atol=1e-5) is not add


@pytest.mark.parametrize(("make", "words"), [
    (lambda: ConvCapsules(3, 5, 4, 6, (3, 3), (1,)), "stride=(1,) has 1 numbers"),
    (lambda: ConvCapsules(3, 0, 4, 6), "child_dim=0"),
    (lambda: ConvCapsules(3, 5, 4, 6)(torch.randn(2, 5, 5, 3, 4)), "built for [B, H, W, 3, 5]"),
    (lambda: ConvCapsules(3, 5, 4, 6)(torch.randn(2, 5, 2, 3, 5)), "is larger than child_shape=(5, 2)"),
    (lambda: ConvCapsules(3, 5, 4, 6, backend="fused")(torch.randn(2, 5, 5, 3, 5)), "no kernels for grids"),
    (lambda: MatrixConvCapsules(3, 4, variance_floor=0), "variance_floor=0 must be a finite number above 0"),
    (lambda: MatrixConvCapsules(3, 4, variance_floor="a"), "variance_floor='a' must be a finite number"),
    (lambda: MatrixConvCapsules(3, 4, inverse_temperature=True), "inverse_temperature=True must be a"),
    (lambda: MatrixConvCapsules(3, 4, temperature_decay=None), "temperature_decay=None must be a number in"),
    (lambda: MatrixConvCapsules(3, 4)(torch.randn(2, 5, 5, 3, 4, 4)), "children are of type Tensor; pass"),
    (lambda: MatrixClassCapsules(3, 4)((1, 2)), "children are of type tuple; pass MatrixCapsules(poses, act"),
    (
        lambda: MatrixConvCapsules(3, 4)(MatrixCapsules(torch.randn(2, 5, 7, 3, 4, 4), torch.rand(2))),
        "activations have shape [2]; with poses [2, 5, 7, 3, 4, 4] pass [2, 5, 7, 3]",
    ),
    (lambda: ConvCapsules(3, 5, 4, 6, competition="types"), "competition='types' is unknown; choose"),
    (lambda: MatrixConvCapsules(3, 4, competition="types"), "competition='types' is unknown; choose"),
    (lambda: MatrixClassCapsules(3, 4, side=1), "side=1 has no room"),
    (lambda: EMCapsNet((1, 28, 28), capsule_types=(4,)), "differ in length"),
    (lambda: EMCapsNet((1, 9, 9)), "kernel=(3, 3) is larger"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(make: object, words: str) -> None:
    with pytest.raises(ShapeError) as caught:
        make()  # type: ignore[operator]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", [lambda *grid: ConvCapsules(3, 5, 4, 6, *grid),
                                   lambda *grid: MatrixConvCapsules(3, 4, *grid)])  # fmt: skip
@pytest.mark.parametrize(("grid", "words"), [
    (((3, 3, 3),), "kernel_size=(3, 3, 3) must be a whole number of at least 1, or a tuple of one or two"),
    ((2.5,), "kernel_size=2.5 must be a whole number"),
    (([3, 3],), "kernel_size=[3, 3] must be a whole number"),
    (((3, 0),), "kernel_size=(3, 0) must be a whole number"),
    (((),), "kernel_size=() must be a whole number"),
    ((True,), "kernel_size=True must be a whole number"),
    ((3, "2"), "stride='2' must be a whole number"),
    ((3, (1, 2, 1)), "stride=(1, 2, 1) must be a whole number"),
    (((3, 3), (2,)), "stride=(2,) has 1 numbers, but kernel_size=(3, 3) 2; give one for each direction"),
    (((3,), (2, 2)), "stride=(2, 2) has 2 numbers, but kernel_size=(3,) 1; give one for each direction"),
    ((3, 1, "full"), "padding='full' is unknown; choose 'valid' or 'same'"),
    ((3, 1, [1, 1]), "padding=[1, 1] is unknown; choose 'valid' or 'same'"),
])  # fmt: skip
def test_what_cannot_be_a_grid_is_named_as_the_layer_names_it(layer: Any, grid: Any, words: str) -> None:
    with pytest.raises(ShapeError) as caught:
        layer(*grid)
    assert words in str(caught.value)
    assert "child_shape" not in str(caught.value)


def test_numbers_of_numpy_are_taken() -> None:
    layer = MatrixConvCapsules(
        3, 4, np.int64(3), (np.int32(2), 1), variance_floor=np.float32(0.5), temperature_decay=0
    )  # fmt: skip
    assert (layer.kernel, layer.stride, layer.routing.variance_floor) == ((3, 3), (2, 1), 0.5)
    assert all(type(number) is int for number in (*layer.kernel, *layer.stride))
    layer(matrices(7, 5)).poses.sum().backward()


def spread_in_loops(scores: Tensor, label: int, margin: float) -> Tensor:
    wrong = [j for j in range(len(scores)) if j != label]
    return sum(torch.clamp(margin - (scores[label] - scores[j]), min=0) ** 2 for j in wrong)  # type: ignore[return-value]


def test_spread_loss_is_equation_3_for_labels_and_soft_labels() -> None:
    scores, labels = torch.rand(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])
    right = torch.stack([spread_in_loops(s, int(t), 0.7) for s, t in zip(scores, labels, strict=True)])
    torch.testing.assert_close(spread_loss(scores, labels, margin=0.7), right)
    soft = torch.zeros(5, 4, dtype=torch.float64).scatter(1, labels[:, None], 1.0)
    torch.testing.assert_close(spread_loss(scores, soft, margin=0.7), right)
    assert (spread_loss(torch.tensor([[1.0, 0.0, 0.1]]), torch.tensor([0]), margin=0.9) == 0).all()
    with pytest.raises(ShapeError, match="one, "):
        spread_loss(scores, labels[:, None], margin=0.7)


def test_the_margin_rises_from_start_to_end_with_the_planned_steps() -> None:
    loss = SpreadLoss()
    for total in (14, 1400):
        margins = [spread_loss_at(loss, step, total).margin_end for step in range(0, total + 1, total // 7)]
        assert margins == sorted(margins)
        assert margins[0] == pytest.approx(0.2142, abs=1e-3)
        assert margins[-1] == pytest.approx(0.98996, abs=1e-3)
    published = SpreadLoss(margin_steps=50_000)
    assert spread_loss_at(published, 1000, 1000).margin_end < 0.22  # never leaves its start


class Deep(nn.Module):
    """Two layers of convolutional capsules and class capsules that share weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 5, 2)
        self.layers = nn.Sequential(ConvCapsules(4, 4, 4, 6, 3, 2), ConvCapsules(4, 6, 4, 6, 3))
        self.classes = SharedClassCapsules(4, 6, 3, 8)

    def forward(self, images: Tensor) -> Tensor:
        grid = self.conv(images).permute(0, 2, 3, 1).unflatten(3, (4, 4))
        return lengths(self.classes(self.layers(grid)))


def stripes() -> tuple[Tensor, Tensor]:
    """Bars of three orientations at random places, with noise."""
    generator = torch.Generator().manual_seed(0)
    images, labels = 0.1 * torch.rand(24, 1, 18, 18, generator=generator), torch.arange(24) % 3
    for image, label, place in zip(
        images, labels, torch.randint(3, 15, (24,), generator=generator), strict=True
    ):
        if label < 2:
            image[0].transpose(0, int(label))[place] = 1
        else:
            image[0].diagonal(int(place) - 9)[:] = 1
    return images, labels


def test_both_kinds_learn_a_fixed_batch() -> None:
    torch.manual_seed(0)
    images, labels = stripes()
    em = EMCapsNet(
        (1, 18, 18), 3, conv_channels=8, primary_types=3, capsule_types=(4,), capsule_kernels=(3,),
        capsule_strides=(2,),
    )  # fmt: skip
    for network, losses in (
        (Deep(), lambda scores: margin_loss(scores, labels)),
        (em, lambda scores: spread_loss(scores, labels, margin=0.5)),
    ):
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(60):
            output = network(images)
            scores = output if isinstance(output, Tensor) else output.scores
            optimizer.zero_grad()
            losses(scores).mean().backward()
            optimizer.step()
        assert (scores.argmax(1) == labels).float().mean() > 0.9
