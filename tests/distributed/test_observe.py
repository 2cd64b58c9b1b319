"""What an observer sees: where training goes on from, then every real image of every step, on its rank."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from small_run import run_small, small_config

from capsdist.config import Config

NUM_TRAIN, STEPS_PER_EPOCH = 26, 4  # the last step has 2 images


def observed(
    config: Config, checkpoints: Path, resume_from: Path | None = None
) -> list[tuple[int, list[int]]]:
    """Run the loop and return what the observer of this rank was called with."""
    seen: list[tuple[int, list[int]]] = []
    run_small(
        config,
        checkpoints,
        resume_from,
        observe=lambda step, sample_ids: seen.append((step, sample_ids.tolist())),
    )
    return seen


def test_every_image_is_seen_once_an_epoch_by_one_rank(ranks, shapes: Path, tmp_path: Path) -> None:
    seen_by = ranks(2).run(observed, small_config(shapes, epochs=2), tmp_path)
    steps = [step for step, _ in seen_by[0]]
    assert steps == list(range(2 * STEPS_PER_EPOCH + 1))
    assert all(seen[0] == (0, []) for seen in seen_by)
    for epoch in range(2):
        own = range(epoch * STEPS_PER_EPOCH + 1, (epoch + 1) * STEPS_PER_EPOCH + 1)
        ids = Counter(number for seen in seen_by for step, ids in seen for number in ids if step in own)
        assert ids == Counter(range(NUM_TRAIN))


def test_a_resumed_run_says_where_it_goes_on(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, epochs=2, checkpoint_every_steps=3)
    whole = observed(config, tmp_path)
    rest = observed(config, tmp_path / "rest", tmp_path / "step-0003")
    assert rest == [(3, []), *whole[4:]]
