"""A run that is killed in the middle of an epoch and continued by new processes equals an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import RankError, Ranks
from small_run import losses, run_small, same_checkpoint, small_config, without_times

from capsdist.errors import CheckpointError, DataError
from capsdist.runs.files import open_files
from capsdist.runs.record import open_record
from capsdist.train.metrics import read_metrics

FINAL, MIDDLE = "step-0012", "step-0006"


SGD = {
    "kind": "sgd", "nesterov": True, "weight_decay": 0.01, "schedule": "one_cycle", "average_decay": 0.9,
}  # fmt: skip


@pytest.mark.parametrize(("world_size", "recipe"), [(1, {}), (2, {}), (2, SGD)])
def test_a_killed_run_continues_bit_for_bit(
    on_ranks, shapes: Path, tmp_path: Path, world_size: int, recipe: dict
) -> None:
    config = small_config(shapes, checkpoint_every_steps=6, max_grad_norm=0.5, recipe=recipe)
    whole = on_ranks(world_size, run_small, config, tmp_path / "whole")
    with Ranks(world_size) as mortal, pytest.raises(RankError, match="died with exit code 9"):
        mortal.run(run_small, config, tmp_path / "killed", None, None, 7)
    assert not (tmp_path / "killed" / FINAL).exists()
    assert same_checkpoint(tmp_path / "whole" / MIDDLE, tmp_path / "killed" / MIDDLE)
    rest = on_ranks(world_size, run_small, config, tmp_path / "killed", tmp_path / "killed" / MIDDLE)
    assert rest[0]["resumed_step"] == 6
    assert without_times(rest) == [row for row in without_times(whole) if row["step"] > 6]
    assert same_checkpoint(tmp_path / "whole" / FINAL, tmp_path / "killed" / FINAL)


def test_dropout_continues_as_well(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, kind="baseline_cnn", max_steps=3, checkpoint_every_steps=2)
    whole = run_small(config, tmp_path)
    rest = run_small(config, tmp_path / "rest", tmp_path / "step-0002")
    assert losses(rest) == losses(whole)[2:]
    # the mutant: draws of dropout that do not follow the step give another loss
    other = config.model_copy(update={"model": config.model.model_copy(update={"dropout": 0.6})})
    assert losses(run_small(other, tmp_path / "other", tmp_path / "step-0002")) != losses(whole)[2:]


@pytest.mark.parametrize("stop_at", [4, 5])
def test_a_stop_saves_and_the_run_continues(shapes: Path, tmp_path: Path, stop_at: int) -> None:
    config = small_config(shapes, name="stop")
    whole = run_small(config, tmp_path / "whole")
    first = run_small(config, tmp_path, stop_at=stop_at)
    assert first[-1]["stopped"] is True
    assert first[-1]["checkpoint"] == f"step-000{stop_at}"
    rest = run_small(config, tmp_path, tmp_path / f"step-000{stop_at}")
    assert rest[-1]["stopped"] is False
    assert losses(first) + losses(rest) == losses(whole)
    assert same_checkpoint(tmp_path / FINAL, tmp_path / "whole" / FINAL)


def test_a_run_that_ended_in_mid_epoch_is_extended_bit_for_bit(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes)
    whole = run_small(config, tmp_path / "whole")
    ended = run_small(small_config(shapes, max_steps=5), tmp_path)
    assert (ended[-1]["stopped"], ended[-1]["checkpoint"]) == (False, "step-0005")
    rest = run_small(config, tmp_path, tmp_path / "step-0005")
    assert losses(ended) + losses(rest) == losses(whole)
    assert same_checkpoint(tmp_path / FINAL, tmp_path / "whole" / FINAL)
    # the check can fail: one step less is another state
    assert not same_checkpoint(tmp_path / "step-0005", tmp_path / "whole" / FINAL)


def test_a_finished_run_is_only_validated(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, max_steps=2)
    whole = run_small(config, tmp_path)
    again = run_small(config, tmp_path, tmp_path / "step-0002")
    assert [row["kind"] for row in again] == ["start", "validation", "end"]
    assert again[-1]["error_percent"] == whole[-1]["error_percent"]


def test_the_record_of_a_resumed_run_is_that_of_the_whole(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, checkpoint_every_steps=5, log_every_steps=3)
    whole = run_small(config, tmp_path / "whole")
    with open_record(open_files(tmp_path), config, print) as write:
        for row in run_small(config, tmp_path / "part", stop_at=8):  # as if it had crashed after step 8
            write(row)
    with open_record(open_files(tmp_path), config, print) as write:
        for row in run_small(config, tmp_path / "rest", tmp_path / "part" / "step-0005"):
            write(row)
    record = read_metrics(tmp_path / "metrics.jsonl")
    assert without_times(record) == without_times(whole)
    assert [row["resumed_step"] for row in record if row["kind"] == "start"] == [0, 5]


def test_a_checkpoint_of_another_network_is_refused(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, max_steps=1)
    run_small(config, tmp_path)
    wider = config.model_copy(update={"model": config.model.model_copy(update={"class_dim": 6})})
    with pytest.raises(
        CheckpointError, match=r"'class_capsules.packed_weights' of shape \[3, 5, 2, 27\].*\[3, 6,"
    ):
        run_small(wider, tmp_path, tmp_path / "step-0001")


def test_a_checkpoint_of_other_data_order_is_refused(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, max_steps=1)
    run_small(config, tmp_path)
    other = config.model_copy(update={"train": config.train.model_copy(update={"global_batch_size": 10})})
    with pytest.raises(DataError, match="global_batch_size=8, this run has 10"):
        run_small(other, tmp_path, tmp_path / "step-0001")


def test_a_run_with_full_last_steps_goes_on_from_any_step(shapes: Path, tmp_path: Path) -> None:
    """26 images in steps of 8: epochs of 4, 3 and 3 steps, whose ends validate; 10 steps in all."""
    config = small_config(shapes, checkpoint_every_steps=1)
    config = config.model_copy(update={"data": config.data.model_copy(update={"last_batch": "carry"})})
    rows = run_small(config, tmp_path / "whole")
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [4, 7, 10]
    for step in (3, 4, 7, 9):
        rest = run_small(config, tmp_path / str(step), tmp_path / "whole" / f"step-{step:04d}")
        assert without_times(rest) == [row for row in without_times(rows) if row["step"] > step]
        assert same_checkpoint(tmp_path / str(step) / "step-0010", tmp_path / "whole" / "step-0010")
