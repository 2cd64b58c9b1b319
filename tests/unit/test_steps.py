"""Steps and epochs, against counting them one by one; official runs have the steps of the authors' code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsdist.config import get_preset
from capsdist.config.steps import EpochSteps, LastBatch, total_steps

SIZES = st.integers(1, 40)


def counted(num_samples: int, batch: int, epochs: int, last_batch: LastBatch) -> list[list[int]]:
    """The epochs of the images of every step, image by image; the last step is filled where all are."""
    images = [epoch for epoch in range(epochs + batch + 1) for _ in range(num_samples)]
    steps: list[list[int]] = []
    while images[0] < epochs:
        size = batch if last_batch == "carry" else min(batch, images.count(images[0]))
        steps.append(images[:size])
        images = images[size:]
    return steps


@given(SIZES, SIZES, st.integers(1, 4), st.sampled_from(["short", "carry"]))
def test_steps_are_those_counted_one_by_one(num: int, batch: int, epochs: int, last_batch: LastBatch) -> None:
    steps = counted(num, batch, epochs, last_batch)
    found = EpochSteps(num, batch, last_batch)
    assert found.before(epochs) == len(steps)
    shown = [epoch for step in steps for epoch in step]
    for number, step in enumerate(steps):
        assert found.locate(number)[0] == step[0]
        assert found.locate(number)[1] == sum(other[0] == step[0] for other in steps[:number])
        done = sum(map(len, steps[: number + 1]))
        ended = any(done >= (epoch + 1) * num > done - len(step) for epoch in range(max(shown) + 1))
        assert found.ends_epoch(number + 1) == ended
        assert found.epochs(number + 1) == pytest.approx(
            done / num if last_batch == "carry" else (number + 1) / -(-num // batch)
        )
    for epoch in range(epochs):
        assert found.inside(epoch) == sum(step[0] == epoch for step in steps)
    assert not found.ends_epoch(0)


@pytest.mark.parametrize(
    ("preset", "num_samples", "steps"),
    [
        ("mnist_official", 60_000, 300_000),
        ("cifar10_official", 50_000, 600_000),
        ("multimnist_official", 60_000_000, 300_000),
        ("affnist_official", 54_000 * 169, 300_000),
        ("smallnorb_official", 24_300, 300_000),
    ],
)
def test_official_runs_have_the_authors_steps(preset: str, num_samples: int, steps: int) -> None:
    config = get_preset(preset)
    assert (config.train.global_batch_size, config.data.last_batch) == (128, "carry")
    assert total_steps(config, num_samples) == steps
    if config.train.max_steps is None:
        assert steps * 128 == config.train.epochs * num_samples
