"""Recipes as training data: every pair once on any number of ranks, resume, a wide shuffle, little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_sets import MadeRecipes, make_recipes

from capsdist.data import Position, TrainStream, eval_batches
from capsdist.data.format.order import Order, rank_slice
from capsdist.data.recipes.index import Base, RecipeIndex, recipe_fields
from capsdist.errors import DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRecipes:
    return make_recipes(tmp_path_factory.mktemp("set"), 31, shape=(1, 4, 4), shard_size=10)


def ids_of(batches) -> list[list[int]]:
    return [batch.sample_ids[batch.weights > 0].tolist() for batch in batches]


CASES = st.fixed_dictionaries(
    {
        "lanes": st.integers(1, 4),
        "share": st.integers(1, 9),
        "window": st.integers(1, 300),
        "seed": st.integers(0, 1000),
        "last_batch": st.sampled_from(["short", "carry"]),
    }
)


def options_of(case: dict) -> dict:
    case = dict(case)
    return {"global_batch_size": case.pop("share") * case["lanes"], **case}


@given(
    case=CASES, world=st.integers(1, 5), other=st.integers(1, 5), stop=st.floats(0, 1),
    partners=st.integers(1, 4), shard_size=st.integers(1, 150), epoch=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stopped_and_continued_by_other_ranks_every_pair_is_seen_once(
    tmp_path: Path, case, world, other, stop, partners, shard_size, epoch
) -> None:
    options = options_of(case)
    recipes = make_recipes(
        tmp_path, 13, shape=(1, 2, 2), partners=partners, pad=1, shift=1, shard_size=shard_size
    )

    def stream(rank: int, world_size: int) -> TrainStream:
        return TrainStream(recipes.folder, rank=rank, world_size=world_size, **options)

    steps = stream(0, 1).steps
    first, last = steps.before(epoch), steps.before(epoch + 1)
    done = round(stop * (last - first))
    seen: list[int] = []
    before = [ids_of(stream(rank, world).epoch(epoch))[:done] for rank in range(world)]
    position = Position.from_dict(stream(0, 1).position(epoch, done).to_dict())
    stream(0, other).check_position(position)
    after = [ids_of(stream(rank, other).epoch(epoch, done)) for rank in range(other)]
    assert {len(rank) for rank in after} == {last - first - done}
    for ranks in (before, after):
        for parts in zip(*ranks, strict=True):
            seen += [sample for part in parts for sample in part]
    num = recipes.index.num_samples
    if options["last_batch"] == "short":
        assert sorted(seen) == list(range(num))
    else:  # steps of whole batches, cut out of one epoch after the other
        batch = options["global_batch_size"]
        whole = np.concatenate([stream(0, 1).order.places(each, 0, num) for each in range(epoch + 5)])
        if last * batch <= len(whole):
            assert seen == whole[first * batch : last * batch].tolist()
            assert len(seen) == (last - first) * batch


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_batches_hold_the_samples_they_name(made: MadeRecipes, kind, world_size):
    whole = made.every("image", "labels")
    seen = []
    for rank in range(world_size):
        if kind == "train":
            batches = TrainStream(
                made.folder,
                seed=1,
                global_batch_size=20,
                lanes=4,
                window=50,
                rank=rank,
                world_size=world_size,
            ).epoch(2)
        else:
            batches = eval_batches(made.folder, batch_size=13, rank=rank, world_size=world_size)
        for batch in batches:
            ids = batch.sample_ids.numpy()
            assert np.array_equal(batch.images.numpy(), whole["image"][ids])
            assert np.array_equal(batch.labels.numpy(), whole["labels"][ids])
            assert (batch.labels.dtype, batch.labels.shape) == (torch.int64, (len(ids), 2))
            seen += batch.sample_ids[batch.weights > 0].tolist()
    assert sorted(seen) == list(range(made.index.num_samples))


@pytest.mark.parametrize("kind", ["never", "device", "eval"])
def test_the_parts_of_a_batch_are_overlaid_to_its_images_exactly(made: MadeRecipes, kind: Any):
    for rank in range(2):
        place = {"rank": rank, "world_size": 2, "parts": True}
        if kind == "eval":
            batches = eval_batches(made.folder, batch_size=13, **place)
        else:
            options = {"seed": 4, "global_batch_size": 20, "lanes": 4, "last_batch": "carry", **place}
            batches = TrainStream(made.folder, resident=kind, **options).epoch(1)
        for batch in batches:
            assert batch.parts is not None
            assert np.array_equal(batch.parts.numpy(), made.source.separate(batch.sample_ids.numpy()))
            assert torch.equal(batch.parts.long().sum(1).clamp(max=255), batch.images.long())


def test_images_that_are_no_pairs_have_no_parts(made: MadeRecipes):
    digits = made.folder.parent / "digits"
    options = {"seed": 0, "global_batch_size": 4, "lanes": 2}
    with pytest.raises(DataError, match=r"digits: has no image of each label.*--model\.no-decoder-separate$"):
        TrainStream(digits, parts=True, **options)
    assert next(iter(eval_batches(digits, batch_size=3, parts=True))).parts is None
    assert next(iter(TrainStream(made.folder, **options).epoch(0))).parts is None


def test_partners_of_mixup_are_pairs_too(made: MadeRecipes):
    whole = made.every("image", "labels")
    for batch in TrainStream(made.folder, seed=1, global_batch_size=20, lanes=4, partners=True).epoch(0):
        assert batch.partner is not None
        ids = batch.partner.sample_ids.numpy()
        assert np.array_equal(batch.partner.images.numpy(), whole["image"][ids])
        assert np.array_equal(batch.partner.labels.numpy(), whole["labels"][ids])


def test_a_position_of_other_recipes_is_refused(made: MadeRecipes, tmp_path):
    other = make_recipes(tmp_path, 31, shape=(1, 4, 4), shard_size=10, seed=1)
    options = {"seed": 0, "global_batch_size": 8, "lanes": 2}
    position = TrainStream(made.folder, **options).position(0, 3)
    with pytest.raises(DataError, match=r"digest=.*continue with the data set it was trained on"):
        TrainStream(other.folder, **options).check_position(position)


# ---- sixty million pairs


def index_of(num: int, partners: int, shard_size: int) -> RecipeIndex:
    """The index of recipes over `num` digits of 28x28, which nobody has to store."""
    base, fields = Base("digits_train", "ab" * 32, 0, num), recipe_fields((1, 28, 28), 4)
    return RecipeIndex(base, fields, tuple("0123456789"), partners, 4, 4, 0, shard_size).with_digest()


MANY = index_of(60_000, 1000, 8192)


@given(
    num=st.integers(1, 40), partners=st.integers(1, 20), shard_size=st.integers(1, 900), case=CASES,
    worlds=st.tuples(st.integers(1, 9), st.integers(1, 9)), stop=st.floats(0, 1), epoch=st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=1000, deadline=None)
def test_no_pair_is_missed_or_doubled(num, partners, shard_size, case, worlds, stop, epoch) -> None:
    """A run of some ranks that is stopped after any step and goes on with other ranks, by a new order."""
    options = options_of(case)
    lanes, window, batch = options["lanes"], options["window"], options["global_batch_size"]
    index = index_of(num, partners, shard_size)
    seen: list[int] = []
    total = -(-index.num_samples // batch)
    done = round(stop * total)
    for world, steps in zip(worlds, (range(done), range(done, total)), strict=True):
        order = Order(index, options["seed"], batch, lanes, window)
        for step in steps:
            full = step < order.num_full_steps
            ids = order.steps(epoch, step, step + 1)[0] if full else order.short_step(epoch)
            for rank in range(world):
                seen += ids[rank_slice(len(ids), rank, world)].tolist()
    assert sorted(seen) == list(range(num * partners))


def test_the_order_of_sixty_million_pairs_takes_little_memory():
    """From the middle of an epoch, as after a resume: the windows of one step, not the epoch."""
    assert MANY.num_samples == 60_000_000
    tracemalloc.start()
    order = Order(MANY, 0, 128, 8, 8192)
    found = order.steps(3, 400_000, 400_010)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert len(np.unique(found)) == 1280
    assert len(order.short_step(3)) == MANY.num_samples % 128


@pytest.mark.parametrize("first", [0, 200_000])
def test_the_shuffle_is_wide(first):
    """Pairs of one digit are far from each other: in a step all digits differ, in 100 few come twice."""
    found = Order(MANY, 0, 128, 8, 8192).steps(0, first, first + 100)
    digits, partners = found % 60_000, found // 60_000
    assert min(len(set(step)) for step in digits.tolist()) >= 124
    chance = 60_000 * (1 - (1 - 1 / 60_000) ** 12_800)  # different digits of 12,800 drawn at random
    assert len(np.unique(digits)) > 0.9 * chance
    assert len(np.unique(partners)) >= 8
    assert digits.std() > 0.2 * 60_000


def test_an_epoch_begins_otherwise_each_time():
    order = Order(MANY, 0, 128, 8, 8192)
    assert len(np.unique([order.steps(epoch, 0, 1)[0] for epoch in range(5)])) == 640
