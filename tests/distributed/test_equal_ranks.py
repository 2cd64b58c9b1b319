"""The number of ranks and microbatches changes nothing but rounding: properties of the step and the loop.

The data has 26 images in steps of 8: slices of 4+4 and 3+3+2 images, and a last step of 2 images that
leaves one of three ranks without any.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import losses, run_small, same_checkpoint, small_config, without_times

from capsdist.config import Config
from capsdist.data import TrainStream
from capsdist.train.checkpoint import read_checkpoint

FINAL = "step-0012"


@pytest.fixture(scope="module")
def single(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """Rows and checkpoints of the run on one rank, without accumulation."""
    folder = tmp_path_factory.mktemp("single")
    return run_small(small_config(shapes, max_grad_norm=0.5), folder), folder


def distance(first: Path, second: Path) -> float:
    """Largest difference of a weight or of an Adam moment between two checkpoints."""
    a, b = read_checkpoint(first).engine, read_checkpoint(second).engine
    pairs = [(a.model[name], b.model[name]) for name in a.model]
    pairs += [(a.optimizer[name], b.optimizer[name]) for name in a.optimizer]
    return max((one - other).abs().max().item() for one, other in pairs)


def run_unweighted(config: Config, checkpoints: Path) -> list[dict[str, Any]]:
    """The mutant: each rank takes the plain mean over its slice, padding included."""
    true_epoch = TrainStream.epoch

    def epoch(self: TrainStream, number: int, start_step: int = 0):
        for batch in true_epoch(self, number, start_step):
            ones = torch.ones_like(batch.weights)
            yield replace(batch, weights=ones, num_global=len(ones) * self.world_size)

    TrainStream.epoch = epoch
    try:
        return run_small(config, checkpoints)
    finally:
        TrainStream.epoch = true_epoch


@pytest.mark.parametrize(
    ("world_size", "split"),
    [
        (1, {"gradient_accumulation_steps": 3}),
        (2, {}),
        (2, {"gradient_accumulation_steps": 2}),
        (2, {"microbatch_size": 3}),
        (3, {}),
        (3, {"gradient_accumulation_steps": 2}),
    ],
)
def test_losses_and_weights_are_those_of_one_rank(
    on_ranks, shapes: Path, single, tmp_path: Path, world_size: int, split: dict[str, int]
) -> None:
    rows, folder = single
    config = small_config(shapes, max_grad_norm=0.5, **split)
    found = on_ranks(world_size, run_small, config, tmp_path)
    assert losses(found) == pytest.approx(losses(rows), rel=1e-5)
    assert distance(tmp_path / FINAL, folder / FINAL) < 1e-5
    for kind in ("train", "validation"):
        error = [[row["error_percent"] for row in each if row["kind"] == kind] for each in (found, rows)]
        assert error[0] == error[1]


def test_a_plain_mean_on_every_rank_breaks_the_property(
    on_ranks, shapes: Path, single, tmp_path: Path
) -> None:
    rows, folder = single
    found = on_ranks(3, run_unweighted, small_config(shapes, max_grad_norm=0.5), tmp_path)
    assert losses(found) != pytest.approx(losses(rows), rel=1e-4)
    assert distance(tmp_path / FINAL, folder / FINAL) > 1e-3


def test_two_ranks_repeat_bit_for_bit(on_ranks, shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes)
    rows = [on_ranks(2, run_small, config, tmp_path / name) for name in ("first", "second")]
    assert without_times(rows[0]) == without_times(rows[1])
    assert same_checkpoint(tmp_path / "first" / FINAL, tmp_path / "second" / FINAL)


def test_another_seed_is_another_run(shapes: Path, single, tmp_path: Path) -> None:
    assert losses(run_small(small_config(shapes, max_grad_norm=0.5, seed=4), tmp_path)) != losses(single[0])
