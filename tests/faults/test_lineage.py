"""Samples and bits are counted from what workers wrote; every count can fail."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from faults.lineage import (
    Attempt,
    Recorder,
    Step,
    count_samples,
    differing_tensors,
    read_attempts,
    surviving,
)

NUM_SAMPLES, STEPS_PER_EPOCH, EPOCHS, RANKS = 23, 4, 3, 2


def order(seed: int) -> dict[int, list[tuple[int, ...]]]:
    """Random shares of every step, by rank: each epoch a permutation, the last step short."""
    draw = random.Random(seed)
    shares: dict[int, list[tuple[int, ...]]] = {rank: [] for rank in range(RANKS)}
    for _ in range(EPOCHS):
        ids = draw.sample(range(NUM_SAMPLES), k=NUM_SAMPLES)
        for step in range(STEPS_PER_EPOCH):
            for rank in range(RANKS):
                shares[rank].append(tuple(ids[step * 6 + rank * 3 : step * 6 + rank * 3 + 3]))
    return shares


def attempts(seed: int, *spans: tuple[int, int]) -> dict[int, list[Attempt]]:
    """Attempts that went on after the first step of each span and died after its last."""
    return {
        rank: [
            Attempt(rank, 0.0, first, tuple(Step(n, 0.0, ids[n - 1]) for n in range(first + 1, last + 1)))
            for first, last in spans
        ]
        for rank, ids in order(seed).items()
    }


def counts(found: dict[int, list[Attempt]]) -> tuple[int, int]:
    """Samples lost and doubled."""
    lineages = [surviving(each) for each in found.values()]
    return count_samples(lineages, num_samples=NUM_SAMPLES, steps_per_epoch=STEPS_PER_EPOCH, epochs=EPOCHS)


SPANS = [
    [(0, 12)],
    [(0, 7), (5, 12)],
    [(0, 7), (0, 12)],
    [(0, 7), (5, 5), (5, 9), (5, 6), (6, 12)],
    [(0, 12), (9, 12)],
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spans", SPANS)
def test_an_exact_lineage_loses_and_doubles_nothing(spans, seed):
    assert counts(attempts(seed, *spans)) == (0, 0)


def test_only_steps_up_to_the_checkpoint_survive_an_attempt():
    (steps, _) = (surviving(each) for each in attempts(0, (0, 7), (5, 6), (3, 4)).values())
    assert [each.step for each in steps] == [1, 2, 3, 4]


# Steps that belong to no surviving lineage, or to it twice: 6 samples a step, 5 in an epoch's last one.
@pytest.mark.parametrize(
    ("spans", "lost", "doubled"),
    [
        ([(0, 11)], 5, 0),  # it never came to its end
        ([(0, 5), (6, 12)], 6, 0),  # went on a step too far
        ([(0, 5), (4, 5), (6, 12)], 6, 0),
        ([(0, 0)], EPOCHS * NUM_SAMPLES, 0),
    ],
)
def test_missing_steps_are_lost_samples(spans, lost, doubled):
    assert counts(attempts(1, *spans)) == (lost, doubled)


def test_a_sample_that_another_takes_the_place_of_is_lost_and_the_other_doubled():
    found = attempts(2, (0, 7), (5, 12))
    (first, second) = found[0]
    steps = list(second.steps)
    steps[1] = steps[1]._replace(sample_ids=steps[0].sample_ids)  # the stream stood still for a step
    found[0] = [first, replace(second, steps=tuple(steps))]
    assert counts(found) == (3, 3)


def test_an_attempt_that_repeats_what_is_in_its_weights_doubles_it():
    found = attempts(3, (0, 7), (5, 12))
    for rank, (first, second) in found.items():
        found[rank] = [first, replace(second, resumed_step=7)]  # weights of step 7, samples of step 6 on
    assert counts(found) == (0, 12)


@pytest.mark.parametrize("stray", [Step(12, 0.0, (NUM_SAMPLES,)), Step(13, 0.0, (0,)), Step(12, 0.0, (-1,))])
def test_samples_of_no_epoch_or_set_are_too_much(stray):
    found = attempts(4, (0, 12))
    found[1] = [replace(found[1][0], steps=(*found[1][0].steps, stray))]
    assert counts(found) == (0, 1)


def test_the_recorder_writes_what_it_sees_and_a_new_worker_begins_a_new_attempt(tmp_path):
    ids = torch.randint(0, 10**9, (3,))
    for resumed, rank in ((0, 1), (4, 1), (0, 0)):
        recorder = Recorder(tmp_path)
        recorder(rank, resumed, ids[:0])
        recorder(rank, resumed + 1, ids)
    found = read_attempts(tmp_path)
    assert {rank: [each.resumed_step for each in own] for rank, own in found.items()} == {0: [0], 1: [0, 4]}
    for attempt in (*found[0], *found[1]):
        (step,) = attempt.steps
        assert (step.step, step.sample_ids) == (attempt.resumed_step + 1, tuple(ids.tolist()))
        assert 0 < attempt.began <= step.time


def checkpoint(folder: Path, change: str | None = None) -> Path:
    """Write the tensors of a checkpoint; `change`: one bit, a type, a name, or the sign of a zero."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(7)
    weight = torch.rand(3, 5, generator=generator)
    state = {"weight/exp_avg": torch.zeros(3, 5), "weight/step": torch.tensor(4.0)}
    match change:
        case "bit":
            weight.view(torch.int32)[1, 2] ^= 1
        case "type":
            state["weight/step"] = torch.tensor(4, dtype=torch.int32)
        case "name":
            state["other/step"] = state.pop("weight/step")
        case "zero":
            state["weight/exp_avg"][0, 0] = -0.0
    save_file({"weight": weight}, folder / "model.safetensors")
    save_file(state, folder / "optimizer.safetensors")
    return folder


def test_equal_checkpoints_do_not_differ(tmp_path):
    assert differing_tensors(checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")) == []


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("bit", ["model:weight"]),
        ("type", ["optimizer:weight/step"]),
        ("name", ["optimizer:other/step", "optimizer:weight/step"]),
        ("zero", ["optimizer:weight/exp_avg"]),
    ],
)
def test_a_bit_is_a_difference(tmp_path, change, names):
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two", change)
    assert differing_tensors(one, two) == names
    if change == "zero":  # equal as numbers
        values = [load_file(folder / "optimizer.safetensors")["weight/exp_avg"] for folder in (one, two)]
        assert torch.equal(*values)
