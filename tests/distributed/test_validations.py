"""Runs that their validations end: `train.stop_at_error` and `train.patience`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from small_run import run_small, same_checkpoint, small_config

from capsdist.config import problems
from capsdist.config.schema import Train
from capsdist.train.checkpoint import read_checkpoint
from capsdist.train.validations import Validations

STILL = {"learning_rate": 1e-30, "validate_every_steps": 3}
"""Nothing is learnt: of the validations after 3, 6, 9 and 12 steps the first has the lowest error."""


def steps_of(rows: list[dict[str, Any]], kind: str) -> list[int]:
    return [row["step"] for row in rows if row["kind"] == kind]


def test_the_end_is_that_of_the_definition_and_survives_a_checkpoint() -> None:
    for _ in range(200):
        bound, patience = random.choice([None, 10.0]), random.choice([None, 1, 2, 3])
        train = Train(stop_at_error=bound, patience=patience)
        validations, errors = Validations(train), []
        while validations.end is None and len(errors) < 12:
            errors.append(random.choice([10.0, 10.5, 20.0, 30.0]))
            validations.add({"error_percent": errors[-1], "loss": 1.0, "num_images": 7}, len(errors))
            metrics = validations.metrics()
            validations = Validations(train)
            validations.resume(metrics)
            assert {**metrics, **validations.metrics()} == metrics
            reached = bound is not None and min(errors) <= bound
            since = len(errors) - 1 - errors.index(min(errors))
            assert (validations.end is not None) == (reached or (patience is not None and since >= patience))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("options", "end", "why"),
    [({"stop_at_error": 100.0}, 3, "at most"), ({"patience": 2}, 9, "2 validations")],
)
def test_a_run_ends_early_saved_and_tested(
    on_ranks, shapes: Path, tmp_path: Path, world_size: int, options: dict[str, Any], end: int, why: str
) -> None:
    rows = on_ranks(world_size, run_small, small_config(shapes, **STILL, **options), tmp_path)
    assert steps_of(rows, "validation") == list(range(3, end + 1, 3))
    assert steps_of(rows, "checkpoint")[-1] == rows[-1]["step"] == end
    assert (rows[-1]["kind"], rows[-1]["stopped"]) == ("end", False)
    assert rows[-1]["error_percent"] is not None
    assert any(row["kind"] == "note" and why in row["message"] for row in rows)
    assert read_checkpoint(tmp_path / f"step-{end:04d}").step == end


def test_an_ended_run_started_again_does_no_step_and_without_the_option_goes_on(
    shapes: Path, tmp_path: Path
) -> None:
    ended, whole = small_config(shapes, **STILL, patience=1), small_config(shapes, **STILL)
    run_small(ended, tmp_path / "cut")
    rows = run_small(ended, tmp_path / "again", tmp_path / "cut/step-0006")
    assert (steps_of(rows, "train"), rows[-1]["step"], rows[-1]["stopped"]) == ([], 6, False)
    run_small(whole, tmp_path / "cut", tmp_path / "cut/step-0006")
    run_small(whole, tmp_path / "whole")
    first, second = (read_checkpoint(tmp_path / name / "step-0012") for name in ("cut", "whole"))
    assert first.metrics["validations_since_lowest"] == second.metrics["validations_since_lowest"] == 3
    assert same_checkpoint(tmp_path / "cut/step-0012", tmp_path / "whole/step-0012")


@pytest.mark.parametrize("option", ["stop_at_error", "patience"])
def test_without_validation_there_is_nothing_to_end_by(shapes: Path, option: str) -> None:
    config = small_config(shapes, **{option: 3, "keep_best": 0})
    config = config.model_copy(update={"data": config.data.model_copy(update={"validation_split": None})})
    assert [problem.field for problem in problems(config)] == [f"train.{option}"]
