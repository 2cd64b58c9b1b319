"""A run that is killed and goes on, recorded as a campaign records it: what survives is whole epochs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, Ranks
from small_run import own_rank, small_config

from capsdist.config import Config
from capsdist.train.loop import run_training
from faults.lineage import Recorder, count_samples, differing_tensors, read_attempts, surviving

NUM_TRAIN, STEPS_PER_EPOCH, EPOCHS = 26, 4, 3


def recorded(
    config: Config, folder: Path, resume_from: Path | None = None, die_at: int | None = None
) -> None:
    """Run the loop, recorded into `folder`, checkpoints beside; die after the step `die_at`."""
    rank, world_size = own_rank()
    recorder = Recorder(folder)

    def save(write: Callable[[Path], None], step: int, metrics: dict[str, float]) -> None:
        write(folder / f"step_{step}")
        dist.barrier()

    def should_stop(step: int) -> bool:
        if step == die_at:
            os._exit(9)
        return False

    run_training(
        config,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        events=lambda row: None,
        save=save,
        resume_from=resume_from,
        should_stop=should_stop,
        observe=lambda step, sample_ids: recorder(rank, step, sample_ids),
    )


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
    ranks(2).run(recorded, config, cut, cut / "step_6")
    assert [[each.resumed_step for each in own] for own in read_attempts(cut).values()] == [[0, 6]] * 2
    assert counts(whole) == counts(cut) == (0, 0)
    assert differing_tensors(whole / "step_12", cut / "step_12") == []
    assert differing_tensors(whole / "step_12", cut / "step_9") != []
