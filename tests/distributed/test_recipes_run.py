"""A capsule network trains on overlaid pairs with two labels, on one and two ranks, and resumes exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import RankError, Ranks
from small_run import losses, run_small, same_checkpoint, small_config, without_times, write_data

from capsdist.config import Config
from capsdist.data.recipes.source import recipes_over, write_recipes
from capsdist.errors import DataError
from capsdist.launch.as_data import fitted

FINAL, MIDDLE = "step-0012", "step-0006"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """The root of a data set of pairs of invented images, 11x11: 26 images with 4 partners each."""
    root = tmp_path / "data"
    write_data(root)
    folder = root / "shapes"
    for split in ("train", "test"):
        (folder / split).rename(folder / f"digits_{split}")
        index = recipes_over(folder, f"digits_{split}", partners=4, pad=1, shift=1, shard_size=20)
        write_recipes(folder / split, index)
    return root


def config_of(root: Path, **train) -> Config:
    config = small_config(root, **{"epochs": 1, "global_batch_size": 9, **train})
    config = config.model_copy(update={"data": config.data.model_copy(update={"lanes": 3})})
    taken = config.model_copy(update={"model": config.model.model_copy(update={"from_data": True})})
    return fitted(taken)


def test_the_network_takes_size_and_labels_from_the_recipes(pairs: Path) -> None:
    model = config_of(pairs).model
    assert (model.in_channels, model.image_size, model.num_classes, model.num_labels) == (1, 11, 3, 2)


def test_a_killed_run_of_two_ranks_continues_bit_for_bit(on_ranks, pairs: Path, tmp_path: Path) -> None:
    config = config_of(pairs, checkpoint_every_steps=6, max_grad_norm=0.5)
    whole = on_ranks(2, run_small, config, tmp_path / "whole")
    with Ranks(2) as mortal, pytest.raises(RankError, match="died with exit code 9"):
        mortal.run(run_small, config, tmp_path / "killed", None, None, 7)
    rest = on_ranks(2, run_small, config, tmp_path / "killed", tmp_path / "killed" / MIDDLE)
    assert rest[0]["resumed_step"] == 6
    assert without_times(rest) == [row for row in without_times(whole) if row["step"] > 6]
    assert same_checkpoint(tmp_path / "whole" / FINAL, tmp_path / "killed" / FINAL)
    assert whole[-1]["step"] == 12  # 104 pairs in steps of 9


def test_two_ranks_train_as_one(on_ranks, pairs: Path, tmp_path: Path) -> None:
    config = config_of(pairs)
    one, two = (on_ranks(number, run_small, config, tmp_path / str(number)) for number in (1, 2))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert [row["num_images"] for row in two if row["kind"] == "validation"] == [48]


def test_the_loss_falls(pairs: Path, tmp_path: Path) -> None:
    rows = run_small(config_of(pairs, epochs=4), tmp_path)
    found = losses(rows)
    assert sum(found[-12:]) < 0.8 * sum(found[:12])
    [*_, last] = [row for row in rows if row["kind"] == "validation"]
    assert last["label_error_percent"] <= last["error_percent"]


def test_a_run_is_not_continued_with_other_recipes(pairs: Path, tmp_path: Path) -> None:
    run_small(config_of(pairs, max_steps=1), tmp_path)
    folder = pairs / "shapes"
    index = recipes_over(folder, "digits_train", partners=4, pad=1, shift=1, seed=1)
    write_recipes(folder / "train", index)
    with pytest.raises(DataError, match=r"data position has digest=.*continue with the data set"):
        run_small(config_of(pairs, max_steps=2), tmp_path, tmp_path / "step-0001")
