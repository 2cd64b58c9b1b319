"""Scripts of faults: decided by the seed, and struck for real in processes of their own."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from capsdist.config import CapsNetConfig, Config
from capsdist.errors import CheckpointError
from capsdist.models import build_model
from capsdist.train.checkpoint import Checkpoint, EngineState, verify_checkpoint, write_checkpoint
from faults.campaign import Verdict
from faults.lineage import Attempt, Step
from faults.random_faults import SAMPLES, SLOTS, random_faults
from faults.recovery import standstill_s
from faults.script import Fault, Mark, Script, read_marks
from faults.tiny import CAMPAIGN_EPOCHS, CHECKPOINT_EVERY, STEPS_PER_EPOCH, WORKERS
from limits import PATIENCE_S

CONFIG = Config(
    model=CapsNetConfig(
        image_size=9, num_classes=3, conv_channels=2, conv_kernel=3, primary_types=2, primary_dim=2,
        primary_kernel=3, class_dim=2, decoder_hidden=(3, 3),
    )
)  # fmt: skip


def drawn(seed: int, num: int) -> list[tuple[Fault, ...]]:
    return random_faults(seed, num, ranks=WORKERS, checkpoint_every=CHECKPOINT_EVERY)


@pytest.mark.parametrize("num", [1, 2, 5, 6, 7, 24])
@pytest.mark.parametrize("seed", range(5))
def test_scripts_are_whole_in_order_and_decided_by_the_seed(seed, num):
    scripts = drawn(seed, num)
    assert scripts == drawn(seed, num)
    assert sum(map(len, scripts)) == num
    for script in scripts:
        assert len(script) <= SLOTS
        steps = [fault.step for fault in script]
        assert all(0 < step < CAMPAIGN_EPOCHS * STEPS_PER_EPOCH for step in steps)
        for fault, following in pairwise(script):
            together = fault.kind == "damaged_checkpoint"
            assert (fault.step == following.step) == together
            assert fault.step <= following.step
        for number, fault in enumerate(script):
            assert 0 <= fault.rank < WORKERS
            if fault.kind == "tear":
                assert (fault.rank, fault.step % CHECKPOINT_EVERY) == (0, 0)
            if fault.kind == "damaged_checkpoint":
                assert script[number + 1] == Fault("kill", fault.rank, fault.step)


def test_other_seeds_give_other_scripts_and_all_kinds_take_part():
    assert drawn(0, 24) != drawn(1, 24)
    kinds = {fault.kind for script in drawn(0, 24) for fault in script}
    assert kinds == {"error", "kill", "tear", "damaged_checkpoint", "stop", "driver"}


def test_the_sample_is_what_the_goal_asks_for():
    kinds = {fault.kind for script in SAMPLES for fault in script}
    assert kinds >= {"damaged_checkpoint", "shard_overwritten", "frozen_worker", "killed_build"}
    assert len(kinds) >= 7


def saved(run: Path, step: int) -> Path:
    """Write a checkpoint of an untrained network where a run has its own."""
    weights = build_model(CONFIG.model, CONFIG.routing).state_dict()
    folder = run / f"step_{step:08d}"
    write_checkpoint(folder, Checkpoint(EngineState(weights, {}), step, 0, {}, CONFIG, {}))
    return folder


def work(script: Script, rank: int, last_step: int) -> None:
    """Be a worker that saves after every fifth step."""
    for step in range(1, last_step + 1):
        script(rank, step)
        if step % 5 == 0:
            saved(script.run, step)


def struck(script: Script, rank: int = 0, last_step: int = 12) -> int | None:
    """Return how a worker process with this script ends."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=(script, rank, last_step))
    process.start()
    process.join(PATIENCE_S)
    return process.exitcode


@pytest.fixture
def make(tmp_path: Path):
    def script(*faults: Fault) -> Script:
        return Script(faults, tmp_path / "marks", tmp_path / "run", tmp_path / "split")

    return script


def test_a_kill_strikes_once_at_its_place(make):
    script, before = make(Fault("kill", 0, 3)), time.time()
    assert struck(script) == -signal.SIGKILL
    (mark,) = read_marks(script.marks)
    assert mark.fault == script.faults[0]
    assert before < mark.time < time.time()
    for step in range(1, 13):
        script(0, step)  # in this very process: it strikes no more


@pytest.mark.parametrize("place", [(1, 3), (0, 4)])
def test_nothing_strikes_elsewhere(make, place):
    script = make(Fault("error", 0, 3))
    script(*place)
    assert read_marks(script.marks) == []
    with pytest.raises(RuntimeError, match="a scripted error at step 3"):
        script(0, 3)
    assert len(read_marks(script.marks)) == 1


def test_a_torn_checkpoint_has_weights_but_no_manifest(make):
    script = make(Fault("tear", 0, 10))
    assert struck(script) == -signal.SIGKILL
    verify_checkpoint(script.run / "step_00000005")
    torn = script.run / "step_00000010"
    assert (torn / "model.safetensors").exists()
    assert not (torn / "state.json").exists()
    with pytest.raises(CheckpointError):
        verify_checkpoint(torn)
    assert [mark.fault.step for mark in read_marks(script.marks)] == [10]


def test_damage_hits_the_newest_checkpoint_and_comes_with_a_death(make):
    script = make(Fault("damaged_checkpoint", 0, 16), Fault("kill", 0, 16))
    assert struck(script, last_step=17) == -signal.SIGKILL
    verify_checkpoint(script.run / "step_00000010")
    for step, name in ((5, "state.json"), (15, "model.safetensors")):
        with pytest.raises(CheckpointError, match=f"is damaged: {name}"):
            verify_checkpoint(script.run / f"step_{step:08d}")
    assert [mark.fault.kind for mark in read_marks(script.marks)] == ["damaged_checkpoint", "kill"]


def test_an_overwritten_shard_is_put_right_before_the_next_start(make, tmp_path):
    script = make(Fault("shard_overwritten", 0, 3))
    script.split.mkdir()
    shard = script.split / "shard-00000.tar"
    shard.write_bytes(b"a shard")
    assert struck(script) == -signal.SIGKILL
    assert shard.read_bytes() == bytes(byte ^ 0xFF for byte in b"a shard")
    script.before_start()
    assert shard.read_bytes() == b"a shard"
    assert len(read_marks(script.marks)) == 1


def test_a_stop_asks_the_driver(make):
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        assert struck(make(Fault("stop", 0, 2)), last_step=2) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def attempt(rank: int, began: float, *times: float) -> Attempt:
    return Attempt(rank, began, 0, tuple(Step(number, moment, ()) for number, moment in enumerate(times, 1)))


def test_a_standstill_lasts_until_all_ranks_of_a_later_attempt_have_done_a_step():
    mark = Mark(Fault("kill", 1, 2), 10.0, "one", 7)
    old = {rank: [attempt(rank, 1.0, 8.0, 10.01)] for rank in range(2)}
    empty = attempt(0, 12.0)  # died before its first step
    found = {0: [*old[0], empty, attempt(0, 15.0, 17.0, 18.0)], 1: [*old[1], attempt(1, 14.0, 17.5)]}
    assert standstill_s(mark, found) == 7.5
    with pytest.raises(ValueError, match="rank 0 has done no step after"):
        standstill_s(mark, old)


@pytest.mark.parametrize(
    ("differing", "finished", "diverged"), [([], True, False), (["model:w"], True, True), ([], False, True)]
)
def test_a_run_diverges_by_a_bit_or_by_not_ending(differing, finished, diverged):
    assert Verdict([], {}, 0, 0, differing, finished).diverged is diverged


def test_marks_are_read_as_they_are_written(tmp_path):
    mark = Mark(Fault("tear", 0, 15), 1.5, "one", 7)
    (tmp_path / "000.json").write_text(json.dumps([*mark.fault, *mark[1:]]))
    assert read_marks(tmp_path) == [mark]
