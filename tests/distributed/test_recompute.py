"""Runs whose backward pass computes capsule blocks again: the same numbers, on every engine, at a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ranks import Ranks
from small_run import losses, run_small, same_checkpoint, small_config

from capsdist.config import Config
from capsdist.train.engine.build import zero_requirements

STEPS = {"max_steps": 3, "checkpoint_every_steps": 2}


def config_of(shapes: Path, **train: Any) -> Config:
    return small_config(shapes, kind="conv_capsnet", **{**STEPS, **train})


def test_a_run_continues_bit_for_bit_with_and_without(shapes: Path, tmp_path: Path) -> None:
    whole = run_small(config_of(shapes, gradient_accumulation_steps=2), tmp_path)
    blocks = config_of(shapes, gradient_accumulation_steps=2, recompute="blocks")
    rest = run_small(blocks, tmp_path / "rest", tmp_path / "step-0002")
    assert losses(rest) == losses(whole)[2:]
    assert same_checkpoint(tmp_path / "step-0003", tmp_path / "rest" / "step-0003")


def test_two_ranks_train_the_same_bit_for_bit(on_ranks, shapes: Path, tmp_path: Path) -> None:
    for name in ("none", "blocks"):
        on_ranks(2, run_small, config_of(shapes, recompute=name), tmp_path / name)
    assert same_checkpoint(tmp_path / "none" / "step-0003", tmp_path / "blocks" / "step-0003")


@pytest.fixture(scope="module")
def two(ranks) -> Ranks:
    return ranks(2)


@pytest.mark.zero
@pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements()))
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_of_zero_trains_the_same(two: Ranks, shapes: Path, tmp_path: Path, stage: int) -> None:
    for name in ("none", "blocks"):
        config = config_of(shapes, recompute=name, engine="zero", zero_stage=stage)
        two.run(run_small, config, tmp_path / name)
    assert same_checkpoint(tmp_path / "none" / "step-0003", tmp_path / "blocks" / "step-0003")
