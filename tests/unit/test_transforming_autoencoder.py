"""The transforming auto-encoder against a loop over capsules, known shifts, and R2 of what is recognised."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from capsdist.analysis.known_shifts import Followed, follow, shift_r2
from capsdist.config import get_preset, problems, with_values
from capsdist.data import Batch
from capsdist.data.transforms import known_shifts, with_shifted
from capsdist.data.transforms.geometry import moved, shifted
from capsdist.errors import ShapeError
from capsdist.models import build_model
from capsdist.models.transforming_autoencoder import Recognised, TransformingAutoencoder, shift_losses

SHAPE = (2, 5, 7)


def small(seed: int = 0, **options) -> TransformingAutoencoder:
    torch.manual_seed(seed)
    return TransformingAutoencoder(
        SHAPE, capsules=3, recognition_units=4, generation_units=6, place_scale=3.0, **options
    ).double()


def one_capsule(
    network: TransformingAutoencoder, k: int, pixels: Tensor, shift: Tensor
) -> tuple[Tensor, ...]:
    """Probability, place [2] and contribution [P] of capsule k for one image [P]."""

    def unit(value: Tensor) -> Tensor:
        return value.clamp(min=0) if network.hidden is torch.relu else 1 / (1 + (-value).exp())

    size = len(network.recognition.weight) // network.capsules
    rows = range(k * size, (k + 1) * size)
    weight, bias = network.recognition.weight, network.recognition.bias
    seen = torch.stack([unit(weight[row] @ pixels + bias[row]) for row in rows])
    given = [
        seen @ network.instantiation_weight[k, :, each] + network.instantiation_bias[k, each]
        for each in range(3)
    ]
    probability = 1 / (1 + (-given[0]).exp())
    place = torch.stack(given[1:]) * network.place_scale
    where = (place + shift) / network.place_scale
    units = [
        unit(where @ network.generation_weight[k, :, g] + network.generation_bias[k, g])
        for g in range(network.generation_bias.shape[1])
    ]
    drawn = torch.stack(units) @ network.drawing_weight[k] + network.drawing_bias[k]
    drawn = 1 / (1 + (-drawn).exp()) if network.logistic else drawn
    return probability, place, probability * drawn


@pytest.mark.parametrize(("hidden", "contribution"), [
    ("logistic", "logistic"), ("relu", "linear"), ("logistic", "linear"),
])  # fmt: skip
def test_the_network_is_a_loop_over_its_capsules(hidden: str, contribution: str) -> None:
    network = small(hidden=hidden, contribution=contribution)
    images, wanted = (torch.rand(4, *SHAPE, dtype=torch.float64) for _ in range(2))
    shifts = torch.tensor([[1.0, -2.0], [0.0, 0.0], [3.0, 1.0], [-2.0, 2.5]], dtype=torch.float64)
    found = network(images, shifts)
    total = torch.zeros((), dtype=torch.float64)
    for n, (image, shift) in enumerate(zip(images, shifts, strict=True)):
        parts = [one_capsule(network, k, image.flatten(), shift) for k in range(network.capsules)]
        for k, (probability, place, _) in enumerate(parts):
            torch.testing.assert_close(found.scores[n, k], probability, rtol=0, atol=1e-12)
            torch.testing.assert_close(found.parent_poses[n, k], place, rtol=0, atol=1e-12)
        drawn = sum(each for _, _, each in parts)
        torch.testing.assert_close(found.reconstructions[n].flatten(), drawn, rtol=0, atol=1e-12)
        total = total + ((drawn - wanted[n].flatten()) ** 2).sum()
    loss = shift_losses(found, wanted)["loss"]
    assert loss.shape == (4,)
    parameters = list(network.parameters())
    expected = torch.autograd.grad(total, parameters)
    for one, other in zip(torch.autograd.grad(loss.sum(), parameters), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_no_shift_is_a_shift_by_nothing() -> None:
    network, images = small(), torch.rand(3, *SHAPE, dtype=torch.float64)
    plain, still = network(images), network(images, torch.zeros(3, 2, dtype=torch.float64))
    assert torch.equal(plain.reconstructions, still.reconstructions)


@pytest.mark.parametrize("preset", ["digits_transforming_autoencoder", "mnist_transforming_autoencoder"])
def test_the_presets_have_the_papers_sizes(preset: str) -> None:
    model = get_preset(preset).model
    network = build_model(model, get_preset(preset).routing)
    pixels, capsules, seeing, drawing = 784, 30, 10, 20
    one = (pixels + 1) * seeing + (seeing + 1) * 3 + (2 + 1) * drawing + (drawing + 1) * pixels
    assert sum(p.numel() for p in network.parameters()) == capsules * one == 732_210
    assert problems(get_preset(preset)) == []


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"shifts has shape \[3\]; give \[3, 2\]"):
        small()(torch.rand(3, *SHAPE).double(), torch.zeros(3))
    with pytest.raises(ShapeError, match="capsules"):
        TransformingAutoencoder(capsules=0)
    config = get_preset("digits_transforming_autoencoder")
    values = {"data.mixup": 0.2, "data.standardise": True, "train.patience": 3, "train.keep_best": 1,
              "data.validation_split": "test", "model.num_labels": 2}  # fmt: skip
    found = {each.field for each in problems(with_values(config, values))}
    assert found == {
        "data.mixup",
        "data.standardise",
        "train.patience",
        "train.keep_best",
        "model.num_labels",
    }


@pytest.mark.parametrize(("size", "most"), [(28, 13), ((15, 40), 7)])
def test_a_shift_that_leaves_no_image_is_refused(size: int | tuple[int, int], most: int) -> None:
    config = with_values(get_preset("digits_transforming_autoencoder"), {"model.image_size": size})
    assert problems(with_values(config, {"model.max_shift": most})) == []
    (problem,) = problems(with_values(config, {"model.max_shift": most + 1}))
    assert str(problem) == (
        f"model.max_shift={most + 1}: may leave half of an image or less: model.image_size={size}; "
        f"set --model.max-shift to {most} at most"
    )


def test_images_are_shifted_each_by_its_own_pixels() -> None:
    images = torch.rand(25, 2, 6, 5)
    shifts = torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3))
    found = shifted(images, shifts, 4)
    for image, (right, down), one in zip(images, shifts.tolist(), found, strict=True):
        assert torch.equal(one, moved(image[None], down, right)[0])


def test_known_shifts_depend_on_seed_epoch_and_image_alone() -> None:
    ids = torch.arange(4000)
    found = known_shifts(ids, 3, 7, 2)
    order = torch.randperm(4000)
    assert torch.equal(known_shifts(ids[order], 3, 7, 2), found[order])
    assert torch.equal(known_shifts(ids, 3, torch.full_like(ids, 7), 2), found)
    counts = torch.bincount(((found + 2) @ torch.tensor([5, 1])), minlength=25)
    assert len(counts) == 25
    assert counts.min() > 100  # of 160 expected
    for other in (known_shifts(ids, 4, 7, 2), known_shifts(ids, 3, 8, 2)):
        assert 0.02 < float((other == found).all(1).double().mean()) < 0.06
    batch = Batch(torch.zeros(0), ids[:6] % 3, torch.ones(6), ids[:6], 6, epoch=7)
    images = torch.rand(6, 1, 4, 4)
    pairs = with_shifted(batch, images, 3, 2)
    assert batch.told is batch.labels
    assert torch.equal(pairs.told, found[:6].float())
    assert torch.equal(pairs.drawn(images), shifted(images, found[:6], 2))


def made(told: Tensor, shifts: Tensor, weights: Tensor | None = None) -> Followed:
    weights = torch.ones(told.shape[:2], dtype=torch.float64) if weights is None else weights
    return Followed(told.double(), weights, shifts.double())


def test_r2_of_capsules_that_know_and_that_do_not() -> None:
    generator = torch.Generator().manual_seed(1)
    shifts = known_shifts(torch.arange(2000), 0, 0, 4)
    known = shifts[:, None].repeat(1, 3, 1).double()
    noise = torch.randn(known.shape, generator=generator, dtype=torch.float64)
    perfect = shift_r2(made(known, shifts))
    assert (*perfect.images, *perfect.capsules) == pytest.approx((1, 1, 1, 1))
    nothing = shift_r2(made(0.1 * noise, shifts))
    assert (*nothing.images, *nothing.capsules) == pytest.approx((0, 0, 0, 0), abs=0.02)
    # a variance of 2^2 about shifts of variance (9^2 - 1) / 12; images have the mean of 3 capsules
    noisy, variance = shift_r2(made(known + 2 * noise, shifts)), 80 / 12
    assert noisy.capsules == pytest.approx((1 - 4 / variance,) * 2, abs=0.03)
    assert noisy.images == pytest.approx((1 - 4 / 3 / variance,) * 2, abs=0.03)
    weights = torch.tensor([1.0, 1e-12, 1e-12], dtype=torch.float64).repeat(2000, 1)
    wrong = torch.cat([known[:, :1], -5 * known[:, 1:]], 1)
    likely = shift_r2(made(wrong, shifts, weights))  # what is improbable does not count
    assert (*likely.images, *likely.capsules) == pytest.approx((1, 1, 1, 1))
    half = shift_r2(made(torch.cat([known, 0 * known], 1), shifts))
    assert half.images == pytest.approx((0.75, 0.75), abs=0.01)  # half the slope: 1 - (1/2)^2


class Seer(TransformingAutoencoder):
    """Recognises the centre of mass of an image, in pixels, or the same place in all."""

    blind = False

    def recognise(self, images: Tensor) -> Recognised:
        mass = images.sum(1)
        rows, columns = (torch.arange(side, dtype=images.dtype) for side in mass.shape[1:])
        places = torch.stack([(mass.sum(1) * columns).sum(1), (mass.sum(2) * rows).sum(1)], 1)
        places = places / mass.sum((1, 2))[:, None] * (not self.blind)
        shape = len(images), self.capsules
        return Recognised(torch.full(shape, 0.5, dtype=images.dtype), places[:, None].expand(*shape, 2))


def test_r2_is_of_what_is_recognised_and_not_of_shifts_that_were_told() -> None:
    images = torch.zeros(300, 1, 15, 15, dtype=torch.float64)
    images[:, :, 5:9, 6:10] = torch.rand(300, 1, 4, 4, dtype=torch.float64)
    shifts = known_shifts(torch.arange(300), 0, 0, 3)
    seer = Seer((1, 15, 15), capsules=2)
    assert shift_r2(follow(seer, images, shifts, 3)).images == pytest.approx((1, 1))
    seer.blind = True
    found = follow(seer, images, shifts, 3)
    assert shift_r2(found).images == pytest.approx((0, 0), abs=0.02)
    # the mutant: with the known shift added, one who sees nothing follows it perfectly
    told = replace(found, differences=found.differences + found.shifts[:, None])
    assert shift_r2(told).images == pytest.approx((1, 1))


def test_a_capsule_that_learns_follows_the_image() -> None:
    """One capsule, blobs, and shifts: places follow, and without the known shift added nothing is learned."""
    torch.manual_seed(0)
    network = TransformingAutoencoder((1, 15, 15), capsules=2, recognition_units=8, generation_units=12)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    rows = torch.arange(15.0)

    def blobs(num: int) -> Tensor:
        centres = 4 + 6 * torch.rand(num, 2, 1)
        across, down = (torch.exp(-((rows - centres[:, each]) ** 2) / 4) for each in (0, 1))
        return (down[:, :, None] * across[:, None, :])[:, None]

    losses = []
    for _ in range(1200):
        images, shifts = blobs(32), torch.randint(-3, 4, (32, 2))
        loss = shift_losses(network(images, shifts.float()), shifted(images, shifts, 3))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert math.fsum(losses[-20:]) < 0.5 * math.fsum(losses[:20])
    shifts = torch.randint(-3, 4, (300, 2))
    found = shift_r2(follow(network, blobs(300), shifts, 3))
    assert min(found.images) > 0.7
