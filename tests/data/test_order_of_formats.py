"""Every sample once, whatever the format, ranks, threads and stops: at least 1,000 random cases.

A run is stopped after any step and continued, from its stored position, by another number of ranks. What all
ranks show must be the steps that tests/order_reference.py computes: no sample is missed or doubled, and every
image and label is that of its id. Threads and chunks differ from rank to rank, as they may.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_sets import FORMATS, Numbered, images_of, labels_of, turns_of, write_numbered

from capsdist.config.steps import LastBatch
from capsdist.data import Batch, Position, Split, TrainStream, eval_batches
from capsdist.data.encoded.split import EncodedSplit
from order_reference import Sample, specified_steps

CASES = [70, pytest.param(2000, marks=pytest.mark.slow)]  # for each of the eight formats
EVALUATIONS = 20
# samples, block size, samples of a shard: one or many, even or not
SIZES = [(1, 8, 30), (7, 2, 3), (32, 8, 32), (60, 5, 20), (101, 7, 17)]


@pytest.fixture(scope="module", params=FORMATS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Numbered]:
    """Splits of one format and different sizes."""
    root = tmp_path_factory.mktemp("sets")
    return [write_numbered(root / str(number), request.param, *sizes) for number, sizes in enumerate(SIZES)]


@dataclass(frozen=True)
class Reader:
    """How a process reads: nothing of it may enter the order.

    chunk: steps that are gathered at once; depth: chunks that wait; threads: that decode; in_memory: may
    shards stay in memory?
    """

    chunk: int
    depth: int
    threads: int
    in_memory: bool


@dataclass(frozen=True)
class Case:
    """An order, and what happens to the run: `stop` is the part of the epoch after which it is stopped."""

    which: int
    lanes: int
    share: int
    window: int
    seed: int
    last_batch: LastBatch
    epoch: int
    worlds: tuple[int, int]
    stop: float
    readers: tuple[Reader, Reader]


READERS = st.builds(Reader, st.sampled_from([1, 3, 64]), st.integers(1, 3), st.integers(1, 4), st.booleans())
RUNS = st.builds(
    Case,
    which=st.integers(0, len(SIZES) - 1),
    lanes=st.integers(1, 5),
    share=st.integers(1, 12),
    window=st.integers(1, 120),
    seed=st.integers(0, 1000),
    last_batch=st.sampled_from(["short", "carry"]),
    epoch=st.integers(0, 3),
    worlds=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stop=st.floats(0, 1),
    readers=st.tuples(READERS, READERS),
)


READER = Reader(64, 2, 3, True)
PLAIN = Case(0, 3, 7, 16, 5, "short", 0, (1, 1), 0, (READER, READER))


def stream_of(made: Numbered, case: Case, rank: int, world_size: int, reader: Reader) -> TrainStream:
    """The batches of a rank of a run."""
    stream = TrainStream(
        made.folder, seed=case.seed, global_batch_size=case.share * case.lanes, lanes=case.lanes,
        window=case.window, last_batch=case.last_batch, rank=rank, world_size=world_size,
    )  # fmt: skip
    if isinstance(stream.split, EncodedSplit):
        stream.split._num_threads = reader.threads
    elif not reader.in_memory:
        assert isinstance(stream.split, Split)
        stream.split.memory_bytes = 0
    return stream


def shown(made: Numbered, parts: tuple[Batch, ...]) -> list[Sample]:
    """What a step shows over all ranks in turn; batches must be of equal size and hold what they name."""
    assert len({part.images.shape for part in parts}) == 1
    found: list[Sample] = []
    for part in parts:
        ids = part.sample_ids.numpy()
        assert np.array_equal(part.images.numpy(), images_of(ids))
        assert np.array_equal(part.labels.numpy(), labels_of(ids, made.num_labels))
        real = (part.weights > 0).numpy()
        epochs = np.full(len(ids), part.epoch) if isinstance(part.epoch, int) else part.epoch.numpy()
        found += zip(epochs[real].tolist(), ids[real].tolist(), strict=True)
    assert {part.num_global for part in parts} == {len(found)}
    return found


def run(
    made: Numbered, case: Case, world_size: int, reader: Reader, first: int, last: int | None
) -> list[list[Sample]]:
    """What steps first .. last - 1 of the epoch show on `world_size` ranks; last: None to the end."""
    chunks = patch("capsdist.data.pipeline._CHUNK_STEPS", reader.chunk)
    depth = patch("capsdist.data.ahead._DEPTH", reader.depth)
    with chunks, depth:
        ranks = []
        for rank in range(world_size):
            batches = stream_of(made, case, rank, world_size, reader).epoch(case.epoch, first)
            ranks.append(list(islice(batches, None if last is None else last - first)))
            batches.close()
    return [shown(made, parts) for parts in zip(*ranks, strict=True)]


def check_run(made: Numbered, case: Case) -> None:
    """Stop a run, continue it with other ranks, and compare all that it shows with the specification."""
    expected = specified_steps(
        case.last_batch, made.sizes, made.digest, case.seed, case.share * case.lanes, case.lanes,
        case.window, case.epoch,
    )  # fmt: skip
    done = round(case.stop * len(expected))
    (world, other), (reader, other_reader) = case.worlds, case.readers
    before = run(made, case, world, reader, 0, done)
    stored = stream_of(made, case, 0, world, reader).position(case.epoch, done).to_dict()
    position = Position.from_dict(stored)
    stream_of(made, case, other - 1, other, other_reader).check_position(position)
    after = run(made, case, other, other_reader, position.step, None)
    assert [*before, *after] == expected
    seen = [sample for step in (*before, *after) for sample in step]
    assert len(seen) == len(set(seen)), "doubled"
    if case.last_batch == "short":
        every = {(case.epoch, sample) for sample in range(sum(made.sizes))}
        assert set(seen) == every, "missed"


@pytest.mark.parametrize("num_cases", CASES)
def test_a_run_that_is_stopped_and_continued_shows_every_sample_once(written, num_cases):
    @settings(max_examples=num_cases, deadline=None)
    @given(case=RUNS)
    def every(case: Case) -> None:
        check_run(written[case.which], case)

    every()


@settings(max_examples=EVALUATIONS, deadline=None)
@given(
    which=st.integers(0, len(SIZES) - 1), world_size=st.integers(1, 5), batch_size=st.integers(1, 40),
    chunk=st.sampled_from([1, 64]),
)  # fmt: skip
def test_an_evaluation_shows_every_sample_once(written, which, world_size, batch_size, chunk):
    made = written[which]
    with patch("capsdist.data.pipeline._CHUNK_STEPS", chunk):
        ranks = [
            list(eval_batches(made.folder, batch_size=batch_size, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
    seen = [sample for parts in zip(*ranks, strict=True) for _, sample in shown(made, parts)]
    assert seen == list(range(sum(made.sizes)))


def test_further_fields_are_those_of_their_ids(written):
    made = written[-1]
    ids = np.random.default_rng(0).integers(0, sum(made.sizes), 500)
    if made.has_turn:
        out = {"turn": np.empty((len(ids), 2), np.float32)}
        stream_of(made, PLAIN, 0, 1, READER).split.gather_into(ids, out)
        assert np.array_equal(out["turn"], turns_of(ids))


@pytest.mark.parametrize("last_batch", ["short", "carry"])
def test_epochs_that_follow_each_other_show_every_sample_once_each(written, last_batch):
    """A filled last step takes samples of the next epoch, which then has them behind it: none is lost."""
    made, epochs = written[-1], range(5)
    num = sum(made.sizes)
    seen: list[Sample] = []
    for epoch in epochs:
        case = replace(PLAIN, last_batch=last_batch, epoch=epoch)
        steps = run(made, case, 1 + epoch % 3, READER, 0, None)
        seen += [sample for step in steps for sample in step]
    assert len(seen) == len(set(seen))
    assert {(epoch, sample) for epoch in epochs for sample in range(num)} <= set(seen)
    assert len(seen) < num * len(epochs) + PLAIN.share * PLAIN.lanes
