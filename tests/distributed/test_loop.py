"""The loop on one rank: its rows and when they come, what it refuses, evaluation of what it saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import losses, refusal, run_small, same_checkpoint, small_config, without_times

from capsdist.config import Config
from capsdist.errors import CheckpointError, ConfigError, DataError, RunError
from capsdist.train.checkpoint import EngineState, read_checkpoint, write_checkpoint
from capsdist.train.evaluate import evaluate_checkpoint
from capsdist.train.schedule import learning_rate_at


def steps_of(rows: list[dict[str, Any]], kind: str) -> list[int]:
    return [row["step"] for row in rows if row["kind"] == kind]


def steady(config: Config) -> Config:
    """The same run without decay, so that it learns."""
    return config.model_copy(update={"optim": config.optim.model_copy(update={"decay_rate": 1.0})})


def test_a_run_learns_repeats_bit_for_bit_and_can_be_evaluated(shapes: Path, tmp_path: Path) -> None:
    config = steady(small_config(shapes, epochs=15, checkpoint_every_steps=60, log_every_steps=15))
    rows, again = (run_small(config, tmp_path / name) for name in ("first", "second"))
    assert losses(rows)[-1] < 0.2 * losses(rows)[0]
    assert rows[-1]["error_percent"] == 0.0
    assert without_times(rows) == without_times(again)
    assert same_checkpoint(tmp_path / "first/step-0060", tmp_path / "second/step-0060")
    found, evaluation = evaluate_checkpoint(tmp_path / "first/step-0060", device="cpu", batch_size=5)
    assert found == config
    validation = next(row for row in reversed(rows) if row["kind"] == "validation")
    assert evaluation["confusion"] == validation["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert evaluation["loss"] == pytest.approx(validation["loss"], rel=1e-5)
    assert evaluation["num_images"] == 12


def test_rows_come_at_the_end_of_epochs_by_default(shapes: Path, tmp_path: Path) -> None:
    rows = run_small(small_config(shapes, log_every_steps=3), tmp_path)
    assert [row["kind"] for row in rows[:1] + rows[-1:]] == ["start", "end"]
    assert steps_of(rows, "train") == [3, 4, 7, 8, 11, 12]
    assert steps_of(rows, "validation") == steps_of(rows, "checkpoint") == [4, 8, 12]
    json.dumps(rows)


def test_rows_come_at_intervals_if_asked_and_always_at_the_last_step(shapes: Path, tmp_path: Path) -> None:
    config = small_config(
        shapes, log_every_steps=100, validate_every_steps=3, checkpoint_every_steps=5, max_steps=7
    )
    rows = run_small(config, tmp_path)
    assert steps_of(rows, "validation") == [3, 6, 7]
    assert steps_of(rows, "checkpoint") == [5, 7]
    assert steps_of(rows, "train") == [3, 5, 6, 7]
    assert rows[-1]["step"] == 7


def test_rows_say_what_the_run_is(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, max_steps=3)
    start, *_, end = rows = run_small(config, tmp_path)
    assert {name: start[name] for name in ("run", "engine", "precision", "device", "world_size")} == {
        "run": "small", "engine": "plain", "precision": "fp32", "device": "cpu", "world_size": 1,
    }  # fmt: skip
    assert (start["steps_per_epoch"], start["total_steps"], start["num_parameters"]) == (4, 3, 2066)
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["learning_rate"] for row in train] == [
        learning_rate_at(step, config.optim, 12) for step in range(3)
    ]
    assert [row["epoch"] for row in train] == [0.25, 0.5, 0.75]
    assert all(
        row["loss"] == pytest.approx(row["margin_loss"] + 5e-4 * row["reconstruction_loss"]) for row in train
    )
    assert all(row[name] > 0 for row in train for name in ("images_per_s", "step_time_s", "grad_norm"))
    assert end["checkpoint"] == "step-0003"
    assert end["images_per_s"] > 0


def test_a_checkpoint_holds_the_position_and_the_metrics(shapes: Path, tmp_path: Path) -> None:
    rows = run_small(small_config(shapes, max_steps=5, checkpoint_every_steps=4), tmp_path)
    epoch_end, last = (read_checkpoint(tmp_path / name) for name in ("step-0004", "step-0005"))
    assert (epoch_end.step, epoch_end.epoch, epoch_end.position["step"]) == (4, 1, 0)
    assert (last.step, last.epoch, last.position["step"]) == (5, 1, 1)
    assert last.metrics["error_percent"] == rows[-1]["error_percent"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_ends_the_run(shapes: Path, tmp_path: Path, precision: str) -> None:
    config = small_config(shapes, kind="baseline_cnn", learning_rate=1e30, precision=precision)
    with pytest.raises(
        RunError,
        match=r"at step \d; start .*lower --optim.learning-rate than 1e\+30, or with --optim.max-grad",
    ):
        run_small(config, tmp_path)
    for folder in tmp_path.iterdir():  # nothing that is not finite was saved
        assert all(torch.isfinite(tensor).all() for tensor in read_checkpoint(folder).engine.model.values())


def test_a_validation_that_is_not_finite_ends_the_run(shapes: Path, tmp_path: Path) -> None:
    """The last step makes the weights so large that only the validation after it notices."""
    config = small_config(shapes, kind="baseline_cnn", learning_rate=1e30, max_steps=1)
    with pytest.raises(RunError, match=r"^validation loss=(nan|inf) at step 1; start again with a lower"):
        run_small(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_weights_that_are_not_finite_are_not_saved(shapes: Path, tmp_path: Path, clip: float) -> None:
    """The step before the checkpoint makes infinite weights out of a finite loss and finite gradients."""
    config = small_config(
        shapes, learning_rate=1e39, max_grad_norm=clip, checkpoint_every_steps=1, validate_every_steps=100
    )
    remedy = r"lower --optim.learning-rate than 1e\+39" + (
        "$" if clip else ", or with --optim.max-grad-norm 1$"
    )
    with pytest.raises(RunError, match=rf"^'conv.weight' holds .* not finite at step 1; .*{remedy}"):
        run_small(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_all_ranks_find_the_same_numbers_not_finite(shapes: Path, tmp_path: Path, ranks: Any) -> None:
    """No rank goes on alone into a collective operation, where it would wait for the others."""
    config = small_config(shapes, learning_rate=1e39, checkpoint_every_steps=1, validate_every_steps=100)
    first, second = ranks(2).run(refusal, config, tmp_path)
    assert first.startswith("'conv.weight' holds values that are not finite at step 1; start again with")
    assert second.startswith("weights are not finite at step 1; start again with")
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_a_checkpoint_is_told_to_begin_under_another_name(shapes: Path, tmp_path: Path) -> None:
    run_small(small_config(shapes, max_steps=2), tmp_path / "good")
    config = small_config(shapes, learning_rate=1e39, max_steps=3)
    with pytest.raises(RunError, match=r"at step 3; start another run with its own --train.name and a lower"):
        run_small(config, tmp_path / "bad", resume_from=tmp_path / "good/step-0002")


def test_a_checkpoint_whose_loss_is_not_finite_has_no_error(shapes: Path, tmp_path: Path) -> None:
    run_small(small_config(shapes, kind="baseline_cnn", max_steps=1), tmp_path)
    saved = read_checkpoint(tmp_path / "step-0001")
    huge = {name: tensor * 1e30 for name, tensor in saved.engine.model.items()}
    write_checkpoint(tmp_path / "huge", replace(saved, engine=EngineState(huge, {})))
    with pytest.raises(
        CheckpointError, match=r"huge: its loss on .* is (nan|inf), so its error means nothing"
    ):
        evaluate_checkpoint(tmp_path / "huge", device="cpu")
    infinite = {name: tensor * 1e39 for name, tensor in saved.engine.model.items()}
    write_checkpoint(tmp_path / "infinite", replace(saved, engine=EngineState(infinite, {})))
    with pytest.raises(CheckpointError, match="values that are not finite"):
        evaluate_checkpoint(tmp_path / "infinite", device="cpu")


def test_bf16_trains_near_fp32(shapes: Path, tmp_path: Path) -> None:
    fp32, bf16 = (
        losses(run_small(small_config(shapes, precision=name), tmp_path / name)) for name in ("fp32", "bf16")
    )
    assert bf16 == pytest.approx(fp32, rel=0.03)
    assert bf16 != fp32
    weights = read_checkpoint(tmp_path / "bf16/step-0012").engine.model
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_evaluation_refuses_a_gpu_where_there_is_none(shapes: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="device='gpu': is not there: torch finds no GPU; use cpu or auto"):
        evaluate_checkpoint(tmp_path, device="gpu")


def test_evaluation_refuses_a_split_that_is_not_there(shapes: Path, tmp_path: Path) -> None:
    run_small(small_config(shapes, max_steps=1), tmp_path)
    with pytest.raises(DataError, match=r"nowhere.*give the folder of a packed split"):
        evaluate_checkpoint(tmp_path / "step-0001", tmp_path / "nowhere", device="cpu")


def test_every_validation_says_how_far_it_is_the_last_one_too(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capsdist.train.evaluate._QUIET_S", -1.0)
    rows = run_small(small_config(shapes, epochs=1), tmp_path)
    found = [
        (row["step"], row["doing"], row["done"], row["total"]) for row in rows if row["kind"] == "progress"
    ]
    assert found == [(4, "validating on test", done, 12) for done in (0, 8)]
