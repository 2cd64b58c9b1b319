"""Batches: content, padding, equal steps on all ranks, exact resume, a thread that always ends."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from capsdist.data import Batch, Position, TrainStream, eval_batches
from capsdist.errors import DataError

WORLDS = [1, 2, 3, 4, 7]


def stream(made, rank: int = 0, world_size: int = 1, **changes) -> TrainStream:
    options = {"seed": 3, "global_batch_size": 21, "lanes": 3, "window": 16} | changes
    return TrainStream(made.folder, rank=rank, world_size=world_size, **options)


def real_ids(batch: Batch) -> list[int]:
    return batch.sample_ids[batch.weights > 0].tolist()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "capsdist-data"]


def readers(made, kind: str, world_size: int) -> list[list[Batch]]:
    """All batches of all ranks, of one training epoch or one evaluation."""
    if kind == "train":
        return [list(stream(made, rank, world_size).epoch(1)) for rank in range(world_size)]
    return [
        list(eval_batches(made.folder, batch_size=9, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_every_sample_once_in_equal_batches(make_split, kind, world_size):
    made = make_split(103)
    ranks = readers(made, kind, world_size)
    assert sorted(i for rank in ranks for batch in rank for i in real_ids(batch)) == list(range(103))
    for parts in zip(*ranks, strict=True):
        assert len({part.images.shape for part in parts}) == 1
        assert {part.num_global for part in parts} == {sum(len(real_ids(part)) for part in parts)}
        assert all(len(part.weights) - part.weights.sum() <= 1 for part in parts)


def carried(made, world_size: int, epochs: int, **changes) -> list[list[Batch]]:
    """The batches of all ranks of `epochs` epochs whose last steps are filled."""
    return [
        [
            batch
            for epoch in range(epochs)
            for batch in stream(made, rank, world_size, last_batch="carry", **changes).epoch(epoch)
        ]
        for rank in range(world_size)
    ]


def epochs_of(batch: Batch) -> list[int]:
    """The epoch of every real sample."""
    epoch = batch.epoch
    real = batch.weights > 0
    return [epoch] * int(real.sum()) if isinstance(epoch, int) else epoch[real].tolist()


# images, batch, lanes: last steps that are short, full, and none that is full
CARRIED = [(103, 21, 3), (84, 21, 3), (10, 7, 7), (5, 12, 3), (5, 4, 1)]


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize(("num", "batch", "lanes"), CARRIED)
def test_carried_steps_are_full_and_show_every_epoch_once(make_split, world_size, num, batch, lanes):
    made = make_split(num)
    ranks = carried(made, world_size, 5, global_batch_size=batch, lanes=lanes)
    shown: dict[int, list[int]] = {}
    epochs: list[int] = []
    for parts in zip(*ranks, strict=True):
        assert {part.num_global for part in parts} == {batch}
        assert sum(len(real_ids(part)) for part in parts) == batch
        for part in parts:
            ids = part.sample_ids.numpy()
            assert np.array_equal(part.images.numpy(), made.images[ids])
            for epoch, sample in zip(epochs_of(part), real_ids(part), strict=True):
                shown.setdefault(epoch, []).append(sample)
                epochs.append(epoch)
    assert epochs == sorted(epochs)  # ranks in turn: in the order of the samples
    assert all(sorted(shown[epoch]) == list(range(num)) for epoch in range(5))
    if rest := [sample for epoch in sorted(shown) if epoch >= 5 for sample in shown[epoch]]:
        assert len(rest) == -(-5 * num // batch) * batch - 5 * num
    # the samples of an epoch stand in the order that they have with a short last step
    alone = stream(made, global_batch_size=batch, lanes=lanes)
    for epoch in range(5):
        assert shown[epoch] == [i for part in alone.epoch(epoch) for i in real_ids(part)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_carried_step_is_the_same_for_any_world(make_split, world_size):
    made = make_split(103)
    for whole, *parts in zip(*carried(made, 1, 3), *carried(made, world_size, 3), strict=True):
        assert [i for part in parts for i in real_ids(part)] == real_ids(whole)
        assert [i for part in parts for i in epochs_of(part)] == epochs_of(whole)


@pytest.mark.parametrize(("num", "batch", "lanes"), CARRIED)
def test_a_carried_run_resumes_at_any_step_of_any_epoch(make_split, num, batch, lanes):
    made = make_split(num)
    options = {"global_batch_size": batch, "lanes": lanes, "last_batch": "carry"}
    [whole] = carried(made, 1, 4, global_batch_size=batch, lanes=lanes)
    for done in range(len(whole)):
        fresh = stream(made, **options)
        epoch, step = fresh.steps.locate(done)
        fresh.check_position(Position.from_dict(fresh.position(epoch, step).to_dict()))
        rest = [part for number in range(epoch, 4) for part in fresh.epoch(number, step * (number == epoch))]
        found = [(real_ids(part), epochs_of(part)) for part in rest]
        assert found == [(real_ids(part), epochs_of(part)) for part in whole[done:]]


def test_a_padded_row_of_a_carried_step_has_the_epoch_of_its_sample(make_split):
    made = make_split(103)
    [*_, last] = stream(made, 0, 2, last_batch="carry").epoch(0)
    assert last.weights.tolist() == [1.0] * 10 + [0.0]
    assert isinstance(last.epoch, torch.Tensor)
    assert last.epoch.shape == last.sample_ids.shape
    assert last.to("meta").epoch.device.type == "meta"


@pytest.mark.parametrize("kind", ["train", "eval"])
@pytest.mark.parametrize("world_size", [1, 4])
def test_batches_hold_the_samples_they_name(make_split, kind, world_size):
    made = make_split(103)
    for batch in (batch for rank in readers(made, kind, world_size) for batch in rank):
        ids = batch.sample_ids.numpy()
        assert np.array_equal(batch.images.numpy(), made.images[ids])
        assert np.array_equal(batch.labels.numpy(), made.labels[ids])
        assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
        assert (batch.weights.dtype, batch.sample_ids.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_a_step_is_the_same_for_any_world(make_split, kind, world_size):
    """Concatenated over ranks, the real samples of a step are those of one rank, in the same order."""
    made = make_split(103)
    if kind == "train":
        alone = readers(made, kind, 1)[0]
    else:
        alone = list(eval_batches(made.folder, batch_size=9 * world_size))
    for whole, *parts in zip(alone, *readers(made, kind, world_size), strict=True):
        assert [i for part in parts for i in real_ids(part)] == real_ids(whole)


def test_evaluation_is_in_storage_order(make_split):
    batches = eval_batches(make_split(103).folder, batch_size=10)
    assert [i for batch in batches for i in real_ids(batch)] == list(range(103))


@pytest.mark.parametrize("start", range(7))
def test_resume_at_any_step_is_the_tail(make_split, start):
    made = make_split(103)
    whole = [batch.sample_ids.tolist() for batch in stream(made, 1, 2).epoch(2)]
    assert len(whole) == stream(made).steps.inside(2) == 5
    rest = [batch.sample_ids.tolist() for batch in stream(made, 1, 2).epoch(2, start)]
    assert rest == whole[start:]


def test_many_chunks_make_one_epoch(make_split, monkeypatch):
    """The size of what is gathered at once changes nothing."""
    made = make_split(103)
    whole = [batch.sample_ids.tolist() for batch in stream(made).epoch(0)]
    monkeypatch.setattr("capsdist.data.pipeline._CHUNK_STEPS", 1)
    assert [batch.sample_ids.tolist() for batch in stream(made).epoch(0)] == whole


def test_position_goes_there_and_back(make_split):
    made = make_split()
    position = stream(made).position(4, 2)
    assert position == Position(made.index.digest, 3, 4, 2, 21, 3, 16, "short")
    assert Position.from_dict(position.to_dict()) == position
    stream(made, 1, 2).check_position(position)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 42}, "global_batch_size=21, this run has 42; use the old batch"),
        ({"lanes": 7}, "lanes=3, this run has 7; use the old lanes"),
        ({"seed": 4}, "seed=3, this run has 4; use the old seed"),
        ({"window": 17}, "window=16, this run has 17; use the old window"),
        ({"last_batch": "carry"}, "last_batch='short', this run has 'carry'; use the old data.last_batch"),
    ],
)
def test_a_position_of_another_order_is_refused(make_split, changes, message):
    made = make_split()
    with pytest.raises(DataError, match=f"data position has {message}"):
        stream(made, **changes).check_position(stream(made).position(0, 0))


def test_a_position_of_another_data_set_is_refused(make_split):
    made, other = make_split(name="a"), make_split(name="b", seed=1)
    message = f"digest='{made.index.digest}', this run has '{other.index.digest}'; continue with the data set"
    with pytest.raises(DataError, match=message):
        stream(other).check_position(stream(made).position(0, 0))


@pytest.mark.parametrize("step", [-1, 6])
def test_a_position_outside_the_epoch_is_refused(make_split, step):
    made = make_split(103)
    with pytest.raises(
        DataError, match=f"data position has step={step}, epoch 0 has 5 steps; resume from another"
    ):
        stream(made).check_position(stream(made).position(0, step))


@pytest.mark.parametrize("change", [{"extra": 1}, {"lanes": None}])
def test_a_position_with_other_fields_is_refused(make_split, change):
    values = stream(make_split()).position(0, 0).to_dict() | change
    values = {name: value for name, value in values.items() if value is not None}
    message = r"data position has fields .* instead of .*; it was saved by another version"
    with pytest.raises(DataError, match=message):
        Position.from_dict(values)


def test_a_position_of_0_1_has_short_last_steps(make_split):
    values = stream(make_split()).position(1, 2).to_dict()
    del values["last_batch"]
    assert Position.from_dict(values) == stream(make_split()).position(1, 2)


def test_fewer_samples_than_ranks(make_split):
    """Ranks without a sample of their own get a padding row, so that they take part in the step."""
    made = make_split(5)
    batches = [next(stream(made, rank, 7).epoch(0)) for rank in range(7)]
    assert [len(batch.labels) for batch in batches] == [1] * 7
    assert sum(float(batch.weights.sum()) for batch in batches) == 5


def test_an_exhausted_epoch_leaves_no_thread(make_split):
    list(stream(make_split()).epoch(0))
    assert not threads()


def test_a_closed_iterator_leaves_no_thread(make_split, monkeypatch):
    monkeypatch.setattr("capsdist.data.pipeline._CHUNK_STEPS", 1)
    batches = stream(make_split(), global_batch_size=3).epoch(0)
    next(batches)
    assert len(threads()) == 1
    batches.close()
    assert not threads()


def test_a_forgotten_iterator_leaves_no_thread(make_split, monkeypatch):
    monkeypatch.setattr("capsdist.data.pipeline._CHUNK_STEPS", 1)
    batches = stream(make_split(), global_batch_size=3).epoch(0)
    next(batches)
    del batches
    gc.collect()
    assert not threads()


def test_errors_of_the_thread_reach_the_consumer(make_split):
    """A shard that vanishes after the stream was made, found when it is touched first."""
    made = make_split()
    train = stream(made)
    (made.folder / "shard-00001.tar").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.tar: shard is missing; pack the set again"):
        list(train.epoch(0))
    assert not threads()


def test_training_checks_every_shard_it_touches(make_split):
    made = make_split()
    damaged = bytearray((made.folder / "shard-00002.tar").read_bytes())
    damaged[1100] ^= 4
    (made.folder / "shard-00002.tar").write_bytes(damaged)
    with pytest.raises(DataError, match=r"shard-00002\.tar: wrong checksum, the file is damaged"):
        list(stream(made).epoch(0))


def test_batches_move_as_a_whole(make_split):
    batch = next(stream(make_split()).epoch(0)).to("meta")
    assert {value.device.type for value in vars(batch).values() if isinstance(value, torch.Tensor)} == {
        "meta"
    }
    assert batch.num_global == 21
