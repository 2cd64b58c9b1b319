"""A run validates on a split of its own and reads the test split once, at the end; or has no validation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from small_run import losses, run_small, small_config, write_data

from capsdist.config import Config
from capsdist.errors import DataError
from capsdist.train.checkpoint import read_checkpoint
from capsdist.train.evaluate import evaluate_checkpoint
from capsdist.train.manifest import STATE, parse_state

NUM_VALIDATION, NUM_TEST = 9, 12


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The invented data set with a split for validation."""
    write_data(tmp_path, num_test=NUM_VALIDATION)
    (tmp_path / "shapes/test").rename(tmp_path / "validation")
    shutil.rmtree(tmp_path / "shapes")
    write_data(tmp_path, num_test=NUM_TEST)
    (tmp_path / "validation").rename(tmp_path / "shapes/validation")
    return tmp_path


def with_validation(root: Path, split: str | None, **train: Any) -> Config:
    """The configuration of a run of 12 steps, 4 an epoch."""
    config = small_config(root, **train)
    return config.model_copy(update={"data": config.data.model_copy(update={"validation_split": split})})


def of_kind(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == kind]


def remove_shards(root: Path, split: str) -> None:
    for shard in (root / "shapes" / split).glob("shard-*"):
        shard.unlink()


@pytest.mark.parametrize("world_size", [1, 2])
def test_validation_has_its_split_and_the_test_comes_once(on_ranks, root: Path, world_size: int) -> None:
    rows = on_ranks(world_size, run_small, with_validation(root, "validation"), root / "run")
    start, end = rows[0], rows[-1]
    assert (start["validation_split"], start["test_split"]) == ("validation", "test")
    validations, [test] = of_kind(rows, "validation"), of_kind(rows, "test")
    assert [(row["step"], row["num_images"]) for row in validations] == [(4, 9), (8, 9), (12, 9)]
    assert (test["step"], test["num_images"]) == (12, NUM_TEST)
    assert rows.index(test) == len(rows) - 2  # after the last checkpoint
    assert [end[name] for name in ("test_split", "num_images", "error_percent", "loss")] == [
        "test", NUM_TEST, test["error_percent"], test["loss"]
    ]  # fmt: skip
    checkpoint = read_checkpoint(root / "run/step-0012")
    assert checkpoint.metrics["loss"] == validations[-1]["loss"] != test["loss"]
    _, evaluation = evaluate_checkpoint(root / "run/step-0012", device="cpu")
    assert evaluation["num_images"] == NUM_TEST
    assert evaluation["confusion"] == test["confusion"]


def test_the_test_split_is_not_read_before_the_end(root: Path) -> None:
    remove_shards(root, "test")
    config = with_validation(root, "validation", validate_every_steps=2)
    rows = run_small(config, root / "run", stop_at=5)
    assert [row["step"] for row in of_kind(rows, "validation")] == [2, 4]
    assert (rows[-1]["stopped"], rows[-1]["error_percent"], rows[-1]["num_images"]) == (True, None, None)
    with pytest.raises(DataError, match=r"shapes/test/shard-00000.tar: shard is missing"):
        run_small(config, root / "run", resume_from=root / "run/step-0005")
    assert (root / "run/step-0012").exists()


def test_without_validation_there_is_the_test_alone(root: Path) -> None:
    shutil.rmtree(root / "shapes/validation")
    config = with_validation(root, None, keep_best=0)
    rows = run_small(config, root / "run")
    assert [row["kind"] for row in rows if row["kind"] != "train"] == [
        "start", "checkpoint", "checkpoint", "checkpoint", "test", "end"
    ]  # fmt: skip
    assert rows[0]["validation_split"] is None
    state = parse_state((root / "run/step-0012" / STATE).read_bytes())
    assert (state.metrics, state.error_percent) == ({}, None)
    again = run_small(config, root / "again", resume_from=root / "run/step-0012")
    assert [row["kind"] for row in again] == ["start", "test", "end"]
    assert again[-1]["error_percent"] == rows[-1]["error_percent"]


def test_the_split_for_validation_changes_no_step(root: Path) -> None:
    found = {
        split: losses(run_small(with_validation(root, split), root / str(split)))
        for split in ("validation", "test", None)
    }
    assert found["validation"] == found["test"] == found[None]


def test_a_stored_configuration_without_the_field_validates_on_its_test_split(root: Path) -> None:
    stored = small_config(root, max_steps=5).model_dump(mode="json")
    assert stored["data"].pop("validation_split") == "test"
    shutil.move(root / "shapes/test", root / "shapes/held_out")
    stored["data"]["test_split"] = "held_out"
    rows = run_small(Config.model_validate(stored), root / "run")
    assert rows[0]["validation_split"] == "held_out"
    assert [row["num_images"] for row in of_kind(rows, "validation")] == [NUM_TEST, NUM_TEST]
    assert of_kind(rows, "test") == []
    last = of_kind(rows, "validation")[-1]
    assert (rows[-1]["error_percent"], rows[-1]["num_images"]) == (last["error_percent"], NUM_TEST)
    stopped = run_small(Config.model_validate(stored), root / "stopped", stop_at=4)
    assert stopped[-1]["error_percent"] is not None


def test_the_state_tells_the_error_of_the_test_split_from_others(root: Path) -> None:
    for split in ("validation", "test"):
        run_small(with_validation(root, split, max_steps=4), root / split)
        state = parse_state((root / split / "step-0004" / STATE).read_bytes())
        assert state.error_percent is not None
        assert state.test_error_percent == (state.error_percent if split == "test" else None)
        del state.config["data"]["validation_split"]  # as of version 0.1
        assert state.test_error_percent == state.error_percent


class Pictures:
    """A record that keeps the steps of pictures."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, row: dict[str, Any]) -> None:
        """Keep nothing of a row."""

    def image(self, name: str, pixels: object, step: int) -> None:
        """Keep the step."""
        self.steps.append(step)


@pytest.mark.parametrize(("split", "steps"), [("validation", [4, 8]), (None, [8]), ("test", [4, 8])])
def test_each_validation_has_a_picture_and_without_any_the_test(root: Path, split: str | None, steps) -> None:
    pictures: Any = Pictures()
    run_small(with_validation(root, split, max_steps=8), root / "run", record=pictures)
    assert pictures.steps == steps


def test_progress_names_the_split(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capsdist.train.evaluate._QUIET_S", -1.0)
    rows = run_small(with_validation(root, "validation", epochs=1), root / "run")
    found = [(row["doing"], row["done"], row["total"]) for row in of_kind(rows, "progress")]
    assert found == [
        *(("validating on validation", done, NUM_VALIDATION) for done in (0, 8)),
        *(("testing on test", done, NUM_TEST) for done in (0, 8)),
    ]
