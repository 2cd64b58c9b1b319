"""A run that is killed and goes on, recorded as a campaign records it: what survives is whole epochs."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import RankError, Ranks
from small_run import own_rank, run_small, small_config

from capsdist.config import Config
from faults.lineage import Recorder, count_samples, differing_tensors, read_attempts, surviving

NUM_TRAIN, STEPS_PER_EPOCH, EPOCHS = 26, 4, 3


def recorded(
    config: Config, folder: Path, resume_from: Path | None = None, die_at: int | None = None
) -> None:
    """Run the loop, recorded into `folder`, checkpoints beside; die after the step `die_at`."""
    rank, _ = own_rank()
    recorder = Recorder(folder)
    run_small(config, folder, resume_from, die_at=die_at, observe=lambda step, ids: recorder(rank, step, ids))


def counts(folder: Path) -> tuple[int, int]:
    """Samples lost and doubled."""
    lineages = [surviving(each) for each in read_attempts(folder).values()]
    return count_samples(lineages, num_samples=NUM_TRAIN, steps_per_epoch=STEPS_PER_EPOCH, epochs=EPOCHS)


def test_what_survives_a_death_is_every_sample_once_an_epoch(ranks, shapes: Path, tmp_path: Path) -> None:
    config, folders = small_config(shapes, checkpoint_every_steps=3), [tmp_path / "whole", tmp_path / "cut"]
    for folder in folders:
        folder.mkdir()
    whole, cut = folders
    ranks(2).run(recorded, config, whole)
    with Ranks(2) as mortal, pytest.raises(RankError, match="died with exit code 9"):
        mortal.run(recorded, config, cut, None, 8)
    assert counts(cut) == ((EPOCHS - 2) * NUM_TRAIN, 0)  # its first two epochs are there
    ranks(2).run(recorded, config, cut, cut / "step-0006")
    assert [[each.resumed_step for each in own] for own in read_attempts(cut).values()] == [[0, 6]] * 2
    assert counts(whole) == counts(cut) == (0, 0)
    assert differing_tensors(whole / "step-0012", cut / "step-0012") == []
    assert differing_tensors(whole / "step-0012", cut / "step-0009") != []
