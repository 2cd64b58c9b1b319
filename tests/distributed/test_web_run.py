"""Runs on foreign tar files: over two ranks, resumed at the end of an epoch, with and without validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from foreign_tars import write_tars
from small_run import losses, run_small, same_checkpoint, small_config

from capsdist.config import Config, validate
from capsdist.errors import DataError
from capsdist.launch.preflight import check_data, missing_data
from capsdist.train.checkpoint import read_checkpoint

STEPS = 4  # an epoch has 26 images: the last step has 2


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URLs of the training images."""
    return write_tars(tmp_path_factory.mktemp("tars"), 26)[0]


def web_config(root: Path, urls: str, *, name: str = "shapes", **train: Any) -> Config:
    config = small_config(root, **train)
    update = {"reader": "webdataset", "urls": urls, "num_samples": 26, "name": name}
    return validate(config.model_copy(update={"data": config.data.model_copy(update=update)}))


def seen(config: Config, checkpoints: Path) -> list[list[int]]:
    """Run, and return the ids that this rank was trained on, by step."""
    ids: list[list[int]] = []
    run_small(config, checkpoints, observe=lambda step, sample_ids: ids.append(sample_ids.tolist()))
    return ids[1:]


def test_two_ranks_learn_and_take_equal_steps(
    shapes: Path, tars: str, tmp_path: Path, on_ranks: Any, ranks: Any
) -> None:
    config = web_config(shapes, tars, num_workers=2, epochs=8)
    rows = on_ranks(2, run_small, config, tmp_path / "run")
    assert [row["kind"] for row in rows].count("validation") == 8
    found = losses(rows)
    assert len(found) == 8 * STEPS
    assert sum(found[-STEPS:]) < sum(found[:STEPS])
    [note] = [row["message"] for row in rows if row["kind"] == "note"]
    assert "inside an epoch an image may be missing or come twice" in note
    [start] = [row for row in rows if row["kind"] == "start"]
    assert (start["data"], start["steps_per_epoch"]) == (tars, STEPS)
    by_rank = ranks(2).run(seen, web_config(shapes, tars, num_workers=2, epochs=1), tmp_path / "seen")
    assert [len(step) for step in by_rank[0]] == [4, 4, 4, 1]
    assert sorted(i for steps in by_rank for step in steps for i in step) == list(range(26))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_resumes_at_the_end_of_an_epoch(
    shapes: Path, tars: str, tmp_path: Path, on_ranks: Any, world_size: int
) -> None:
    config = web_config(shapes, tars, num_workers=world_size)
    on_ranks(world_size, run_small, config, tmp_path / "whole")
    rows = on_ranks(world_size, run_small, config, tmp_path / "parts", None, STEPS + 2)
    assert rows[-1]["stopped"]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [f"step-{STEPS:04d}"]
    on_ranks(world_size, run_small, config, tmp_path / "parts", tmp_path / "parts" / f"step-{STEPS:04d}")
    last = f"step-{3 * STEPS:04d}"
    assert same_checkpoint(tmp_path / "parts" / last, tmp_path / "whole" / last)


def test_a_run_that_ended_inside_an_epoch_is_refused(shapes: Path, tars: str, tmp_path: Path) -> None:
    run_small(web_config(shapes, tars, max_steps=STEPS + 2), tmp_path)
    with pytest.raises(DataError, match=r"step 2 of 4 of epoch 1, .* --train.init-from"):
        run_small(web_config(shapes, tars), tmp_path, tmp_path / f"step-{STEPS + 2:04d}")


def test_without_validation(shapes: Path, tars: str, tmp_path: Path) -> None:
    config = web_config(shapes, tars, name="", epochs=1)
    assert missing_data(config) is None
    assert check_data(config).num_samples == 26
    rows = run_small(config, tmp_path)
    assert "validation" not in {row["kind"] for row in rows}
    assert (rows[-1]["kind"], rows[-1]["error_percent"], rows[-1]["test_split"]) == ("end", None, "")
    saved = read_checkpoint(tmp_path / f"step-{STEPS:04d}")
    assert (saved.metrics, saved.classes) == ({}, ("0", "1", "2"))


def test_classes_are_those_of_the_split_to_validate_on(shapes: Path, tars: str, tmp_path: Path) -> None:
    config = web_config(shapes, tars, epochs=1)
    assert check_data(config).classes == ("bar", "dot", "ring")
    named = config.data.model_copy(update={"classes": ("dot", "bar", "ring")})
    with pytest.raises(DataError, match=r"class 0 is 'bar', in data.classes it is 'dot'; set --data.classes"):
        check_data(config.model_copy(update={"data": named}))


def test_missing_tars_are_told_before_a_run(shapes: Path, tmp_path: Path) -> None:
    config = web_config(shapes, f"{tmp_path}/{{0..2}}.tar", epochs=1)
    assert missing_data(config) == f"{tmp_path}/0.tar: is not there; correct --data.urls"
    with pytest.raises(DataError, match=r"correct --data\.urls"):
        check_data(config)
