"""Mixup: weights from Beta, partners by place in the step, soft targets, independence of ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from capsdist.data import Batch, Mixup, TrainStream, Transform
from capsdist.data.transforms.mixing import soft_targets
from capsdist.ops import margin_loss
from transform_reference import number, transformed

IDS = torch.arange(20_000) * 7


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2, 0.4, 0.75, 1.0, 1.5, 2.0, 8.0, 100.0, 1000.0])
def test_weights_are_the_inverse_of_the_distribution_at_uniform_numbers(alpha: float) -> None:
    found = Mixup(alpha, 10).weights(IDS[:2000], 3, 4)
    expected = stats.beta.ppf([number(i, 18, 3, 4) for i in IDS[:2000].tolist()], alpha, alpha)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6 if 0.05 <= alpha <= 100 else 2e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_weights_are_distributed_as_beta(alpha: float) -> None:
    weights = Mixup(alpha, 10).weights(IDS, 1, 2).double().numpy()
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 1e-4


def test_a_weight_depends_on_seed_epoch_and_sample_only() -> None:
    mixup = Mixup(0.3, 10)
    whole = mixup.weights(IDS, 1, 2)
    assert torch.equal(mixup.weights(IDS.flip(0), 1, 2).flip(0), whole)
    assert torch.equal(mixup.weights(IDS[5:6], 1, 2), whole[5:6])
    assert torch.equal(mixup.weights(IDS, 1, torch.full_like(IDS, 2)), whole)
    assert not torch.equal(mixup.weights(IDS, 2, 2), whole)
    assert not torch.equal(mixup.weights(IDS, 1, 3), whole)


def test_soft_targets_are_the_shares_of_both_classes() -> None:
    labels, others = torch.tensor([0, 2, 1]), torch.tensor([1, 2, 0])
    found = soft_targets(labels, others, torch.tensor([0.75, 0.3, 1.0]), 4)
    expected = [[0.75, 0.25, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_soft_targets_sum_to_one_and_stay_in_range() -> None:
    weights, generator = torch.rand(100_000), torch.Generator().manual_seed(0)
    labels, others = torch.randint(3, (2, len(weights)), generator=generator)
    found = soft_targets(labels, others, weights, 3)
    assert (found.sum(1) == 1).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_margin_loss_of_soft_targets_is_the_weighted_mean_of_both() -> None:
    """Equation 4 with T between 0 and 1: it is linear in T."""
    torch.manual_seed(0)
    lengths, weights = torch.rand(50, 6).double(), torch.rand(50)
    labels, others = torch.randint(6, (2, 50))
    targets = soft_targets(labels, others, weights, 6).double()
    present, absent = (0.9 - lengths).clamp_min(0) ** 2, (lengths - 0.1).clamp_min(0) ** 2
    literal = (targets * present + 0.5 * (1 - targets) * absent).sum(1)
    mean = weights * margin_loss(lengths, labels) + (1 - weights) * margin_loss(lengths, others)
    torch.testing.assert_close(literal, mean, rtol=1e-6, atol=1e-7)


# ---- partners


def batches(made: Any, world_size: int, **options: Any) -> list[list[Batch]]:
    """The batches of two epochs of every rank."""
    settings = {"seed": 3, "global_batch_size": 15, "lanes": 3, "window": 16, **options}
    streams = [TrainStream(made.folder, rank=r, world_size=world_size, **settings) for r in range(world_size)]
    return [[batch for epoch in range(2) for batch in stream.epoch(epoch)] for stream in streams]


def real(batch: Batch, values: Any) -> list[Any]:
    """The values of the batch's real samples; one number stands for all."""
    keep = batch.weights > 0
    return values[keep].tolist() if isinstance(values, torch.Tensor) else [values] * int(keep.sum())


@pytest.mark.parametrize("last_batch", ["short", "carry"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_partner_is_at_the_next_place_of_the_whole_step(
    make_split: Callable[..., Any], world_size: int, last_batch: str
) -> None:
    made = make_split(37)
    for parts in zip(*batches(made, world_size, last_batch=last_batch, partners=True), strict=True):
        ids = [each for part in parts for each in real(part, part.sample_ids)]
        epochs = [each for part in parts for each in real(part, part.epoch)]
        pairs = [(part, part.partner) for part in parts if part.partner]
        assert len(pairs) == world_size
        partners = [each for part, other in pairs for each in real(part, other.sample_ids)]
        assert partners == [*ids[1:], ids[0]]
        assert [each for p, other in pairs for each in real(p, other.epoch)] == [*epochs[1:], epochs[0]]
        for _, other in pairs:
            assert np.array_equal(other.images.numpy(), made.images[other.sample_ids.numpy()])
            assert np.array_equal(other.labels.numpy(), made.labels[other.sample_ids.numpy()])


@pytest.mark.parametrize("world_size", [1, 3])
def test_partners_change_nothing_else(make_split: Callable[..., Any], world_size: int) -> None:
    made = make_split(37)
    for plain, paired in zip(
        batches(made, world_size), batches(made, world_size, partners=True), strict=True
    ):
        for one, other in zip(plain, paired, strict=True):
            assert one.partner is None
            assert torch.equal(one.weights, other.weights)
            for name in ("images", "labels", "sample_ids"):
                assert real(one, getattr(one, name)) == real(other, getattr(other, name))


def mixed(batch: Batch, seed: int = 5) -> tuple[Batch, torch.Tensor]:
    """A batch after a transform with chance, and mixup."""
    transform = Transform(shift=1, flip=True, brightness=50.0)
    images = transform(batch.images, batch.sample_ids, seed, batch.epoch)
    return Mixup(0.4, 10)(batch, images, transform, seed)


def test_mixed_images_and_targets_are_those_of_the_reference(make_split: Callable[..., Any]) -> None:
    made, options = make_split(37), {"shift": 1, "flip": True, "brightness": 50.0}
    [[*_, batch]] = batches(made, 1, partners=True, last_batch="carry")
    found, images = mixed(batch)
    ids = batch.sample_ids.tolist()
    epochs = batch.epoch.tolist() if isinstance(batch.epoch, torch.Tensor) else [batch.epoch] * len(ids)
    shown = [transformed(made.images[i], i, 5, e, options) for i, e in zip(ids, epochs, strict=True)]
    for place, (sample, epoch) in enumerate(zip(ids, epochs, strict=True)):
        after = (place + 1) % len(ids)
        weight = stats.beta.ppf(number(sample, 18, 5, epoch), 0.4, 0.4)
        expected = weight * shown[place] + (1 - weight) * shown[after]
        np.testing.assert_allclose(images[place].numpy(), expected, atol=1e-5)
        target = np.zeros(10)
        target[made.labels[sample]] += weight
        target[made.labels[ids[after]]] += 1 - weight
        np.testing.assert_allclose(found.labels[place].numpy(), target, atol=1e-5)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_mix_the_same_images(make_split: Callable[..., Any], world_size: int) -> None:
    made = make_split(37)
    options = {"partners": True, "last_batch": "carry"}
    for whole, *parts in zip(
        *batches(made, 1, **options), *batches(made, world_size, **options), strict=True
    ):
        targets, images = mixed(whole)
        on_ranks = [(part.weights > 0, *mixed(part)) for part in parts]
        torch.testing.assert_close(torch.cat([x[keep] for keep, _, x in on_ranks]), images)
        torch.testing.assert_close(torch.cat([b.labels[keep] for keep, b, _ in on_ranks]), targets.labels)


def test_a_batch_takes_its_partners_along(make_split: Callable[..., Any]) -> None:
    [[batch, *_]] = batches(make_split(37), 1, partners=True)
    moved = batch.to("meta")
    assert moved.images.is_meta
    assert moved.partner is not None
    assert moved.partner.images.is_meta
    assert moved.partner.labels.is_meta
    assert moved.partner.sample_ids.is_meta
