"""A capsule network trains on overlaid pairs with two labels, on one and two ranks, and resumes exactly."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import RankError, Ranks
from small_run import CLASSES, losses, run_small, same_checkpoint, small_config, without_times, write_data
from torch import Tensor

from capsdist.config import Config, validate, with_values
from capsdist.data import write_split
from capsdist.data.format.source import open_split
from capsdist.data.recipes.source import Recipes, recipes_over, write_recipes
from capsdist.errors import DataError
from capsdist.launch.as_data import fitted
from capsdist.train import mfu
from capsdist.train.evaluate import evaluate_engine
from capsdist.train.parts import Parts, build_parts
from capsdist.train.program import StepProgram
from capsdist.train.speed import draws_random_numbers, example_batch
from capsdist.train.step import metric_names, train_on
from tape import tape

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
    assert model.draws_parts


def parts_of(config: Config) -> Parts:
    return build_parts(config, rank=0, world_size=1, device=torch.device("cpu"))


def squared_error(parts: Parts, pose: Tensor, number: int, image: Tensor) -> float:
    """Of what the decoder draws of one capsule, with pose [E], against `image` [C, H, W]."""
    poses = torch.zeros(1, 3, len(pose))
    poses[0, number] = pose
    decoder: Any = parts.engine.model.decoder
    return float((decoder(poses, torch.tensor([number]))[0] - image).square().sum())


@torch.no_grad()
def test_a_step_has_the_loss_of_both_digits_by_themselves(pairs: Path) -> None:
    config = validate(config_of(pairs, gradient_accumulation_steps=2))
    parts, seed = parts_of(config), config.train.seed
    source = open_split(parts.train_folder)
    assert isinstance(source, Recipes)
    batch = next(iter(parts.stream.epoch(0)))
    ids = batch.sample_ids
    poses = parts.engine.forward(parts.transform(batch.images, ids, seed, 0)).parent_poses
    assert poses is not None
    alone = torch.from_numpy(source.separate(ids.numpy()))  # shifted by 0 or 1 pixel, as their image is
    moved = [parts.transform(alone[:, place], ids, seed, 0) for place in range(2)]
    expected = sum(
        squared_error(parts, poses[n, label], label, moved[place][n])
        for n, labels in enumerate(batch.labels.tolist())
        for place, label in enumerate(labels)
    )
    with torch.enable_grad():
        sums, _ = train_on(parts, batch, 0)
    named = dict(zip(metric_names(parts.family, 2), sums.tolist(), strict=True))
    assert named["reconstruction_loss"] == pytest.approx(expected, rel=1e-5)
    parts.close()


@torch.no_grad()
def test_a_validation_compares_the_longest_capsules_with_their_own_images(pairs: Path) -> None:
    config = config_of(pairs)
    parts = parts_of(config)
    for step, batch in enumerate(parts.stream.epoch(0)):
        with torch.enable_grad():
            train_on(parts, batch, step)
    folder = pairs / "shapes/test"
    source, margins, total, num_swapped = open_split(folder), 0.0, 0.0, 0
    assert isinstance(source, Recipes)
    ids = np.arange(source.index.num_samples)
    fields, alone = source.fields(ids, "image", "labels"), torch.from_numpy(source.separate(ids)) / 255
    output = parts.engine.model.eval()(torch.from_numpy(fields["image"]) / 255)
    for n, labels in enumerate(fields["labels"].tolist()):
        scores = output.scores[n].tolist()
        first, second, _ = sorted(range(3), key=lambda j, scores=scores: -scores[j])
        places = (1, 0) if first == labels[1] or second == labels[0] else (0, 1)
        num_swapped += places == (1, 0)
        margins += sum(
            max(0.9 - v, 0) ** 2 if j in labels else 0.5 * max(v - 0.1, 0) ** 2 for j, v in enumerate(scores)
        )
        errors = [
            squared_error(parts, output.parent_poses[n, j], j, alone[n, place])
            for j, place in zip((first, second), places, strict=True)
        ]
        total += 0.0005 * sum(errors)
    assert 0 < num_swapped < len(ids)
    found = evaluate_engine(parts.engine, folder, config)
    assert found["loss"] == pytest.approx((margins + total) / len(ids), rel=1e-4)
    # stored as pixels there is no image of each label: the margin loss alone
    write_split(pairs / "pixels", fields["image"], fields["labels"], classes=CLASSES)
    plain = evaluate_engine(parts.engine, pairs / "pixels", config)
    assert plain["loss"] == pytest.approx(margins / len(ids), rel=1e-4)
    assert plain["error_percent"] == found["error_percent"]
    parts.close()


def test_a_recorded_run_equals_an_eager_one_bit_for_bit(pairs: Path) -> None:
    eager, recorded = (parts_of(config_of(pairs)) for _ in range(2))
    program = StepProgram(recorded, tape)
    for step, (one, other) in enumerate(zip(eager.stream.epoch(0), recorded.stream.epoch(0), strict=True)):
        expected, found = train_on(eager, one, step), program(other, step)
        assert torch.equal(found[0], expected[0])
    assert program.recorded
    assert program.failure is None


def test_trials_before_the_first_step_draw_both_digits_too(pairs: Path) -> None:
    config = config_of(pairs, microbatch_size="auto")
    parts, together = parts_of(config), parts_of(with_values(config, {"model.decoder_separate": False}))
    assert parts.config.train.microbatch_size == 9
    assert not draws_random_numbers(parts, example_batch(parts))
    units = (3 * 5, 7, 9, 11 * 11)  # of the decoder: 6 FLOP a weight and row, forward and backward
    both, one = (mfu._flop_of(each) for each in (parts, together))
    assert both
    assert one
    assert both - one == 6 * sum(before * after for before, after in pairwise(units))


def test_a_training_set_that_is_no_recipe_is_refused(pairs: Path, tmp_path: Path) -> None:
    config = config_of(pairs)
    digits = config.data.model_copy(update={"train_split": "digits_train", "test_split": "digits_test"})
    with pytest.raises(DataError, match=r"digits_train: has no image.*set --model\.no-decoder-separate$"):
        run_small(config.model_copy(update={"data": digits}), tmp_path)


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
