"""Real DeepSpeed on two ranks: ZeRO 0 to 3 are the plain engine, in numbers, states and resumes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from engine_runs import (
    ENGINES,
    RECIPES,
    averaged_toy,
    build_toy,
    continue_toy,
    frozen_toy,
    overflow_toy,
    partition_numels,
    train_toy,
)  # fmt: skip
from ranks import Ranks
from small_run import losses, refusal, run_small, same_bits, same_checkpoint, small_config, without_times
from toy import toy, toy_batch

from capsdist.errors import CheckpointError
from capsdist.train.checkpoint import EngineState
from capsdist.train.engine.build import zero_requirements

pytestmark = [
    pytest.mark.zero,
    pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements())),
]

STAGES = range(4)
ZERO = [f"zero-{stage}" for stage in STAGES]


@pytest.fixture(scope="module")
def two(ranks) -> Ranks:
    return ranks(2)


@pytest.fixture(scope="module")
def ddp(two: Ranks) -> tuple[list[float], EngineState]:
    """Norms and state of 5 steps of the toy network with DDP."""
    return two.run(train_toy, "ddp", 5)[0]


@pytest.fixture(scope="module")
def saved(two: Ranks, ddp) -> dict[str, EngineState]:
    """The state after 5 steps, saved by every engine."""
    return {name: two.run(train_toy, name, 5)[0][1] for name in ENGINES}


@pytest.mark.parametrize("name", ZERO)
@pytest.mark.parametrize(
    "options",
    [{}, {"clip": 0.0, "gradient_accumulation_steps": 1}, *({"recipe": each} for each in RECIPES.values())],
    ids=["clip, accumulate", "neither", *RECIPES],
)
def test_steps_are_those_of_ddp(two: Ranks, name: str, options: dict) -> None:
    norms, state = two.run(train_toy, "ddp", 5, options)[0]
    found, zero = two.run(train_toy, name, 5, options)[0]
    assert found == pytest.approx(norms, rel=1e-5)
    for key, tensor in {**state.model, **state.optimizer}.items():
        other = {**zero.model, **zero.optimizer}[key]
        torch.testing.assert_close(other, tensor, rtol=1e-5, atol=1e-6, msg=key)


def test_an_evaluation_has_the_averages_and_training_goes_on_without(two: Ranks) -> None:
    expected, *_, end = two.run(averaged_toy, "ddp")[0]
    for name in ZERO:
        scores, before, after, last = two.run(averaged_toy, name)[0]
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
        network = toy()
        network.load_state_dict(before.model)  # a checkpoint has the averages as its weights
        torch.testing.assert_close(scores, network(toy_batch(0)[0]).scores.detach(), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(before.model["weights"], before.optimizer["weights/trained"], rtol=1e-3)
        assert same_bits(before.model | before.optimizer, after.model | after.optimizer)
        for key, tensor in {**end.model, **end.optimizer}.items():
            torch.testing.assert_close({**last.model, **last.optimizer}[key], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("saver", "loader"),
    [
        ("zero-3", "ddp"), ("ddp", "zero-2"), ("zero-1", "zero-3"), ("zero-0", "zero-1"),
        ("zero-2", "zero-0"), ("ddp", "zero-3"), ("zero-3", "zero-1"),
    ],
)  # fmt: skip
def test_a_state_goes_from_engine_to_engine(two: Ranks, saved, saver: str, loader: str) -> None:
    untouched, norms = two.run(continue_toy, loader, saved[saver], 5)[0]
    assert same_bits(untouched.model, saved[saver].model)
    assert same_bits(untouched.optimizer, saved[saver].optimizer)
    assert norms == pytest.approx(two.run(continue_toy, "ddp", saved["ddp"], 5)[0][1], rel=1e-5)


@pytest.mark.parametrize(
    ("saver", "loader"), [("ddp", "zero-3"), ("zero-3", "zero-2"), ("zero-1", "zero-0"), ("zero-0", "ddp")]
)
def test_a_frozen_layer_keeps_its_weights_and_has_no_optimizer_state(
    two: Ranks, saver: str, loader: str
) -> None:
    state, loaded, norms, continued = two.run(frozen_toy, saver, loader)[0]
    start = toy(seed=0).dense
    assert torch.equal(state.model["dense.weight"], start.weight)
    assert {name.partition("/")[0] for name in state.optimizer} == {"weights"}
    assert same_bits(loaded.model, state.model)
    assert same_bits(loaded.optimizer, state.optimizer)
    assert continued == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("name", ["zero-1", "zero-3"])
def test_a_state_goes_to_another_number_of_ranks(saved, name: str) -> None:
    untouched, norms = continue_toy("ddp", saved[name], 5)
    assert same_bits(untouched.optimizer, saved[name].optimizer)
    with Ranks(1) as one:
        alone, norms_alone = one.run(continue_toy, name, untouched, 5)[0]
    assert same_bits(alone.optimizer, saved[name].optimizer)
    assert norms_alone == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_negative_zeros_and_step_counts_survive(two: Ranks, saved, name: str) -> None:
    state = saved["ddp"]
    zeros = {key: torch.full_like(t, -0.0) for key, t in state.optimizer.items() if not key.endswith("/step")}
    odd = EngineState({**state.model, "dense.bias": torch.full((7,), -0.0)}, state.optimizer | zeros)
    untouched, _ = two.run(continue_toy, name, odd, 5)[0]
    assert same_bits(untouched.model, odd.model)
    assert same_bits(untouched.optimizer, odd.optimizer)
    assert untouched.optimizer["weights/step"] == 5


def test_a_fresh_engine_has_done_no_step(two: Ranks) -> None:
    for name in ZERO:  # one call a stage; DeepSpeed must not have advanced Adam while it set itself up
        state = two.run(train_toy, name, 0)[0][1]
        assert all((tensor == 0).all() for tensor in state.optimizer.values())


@pytest.mark.parametrize(("stage", "held", "weights"), [(1, 102, 203), (2, 102, 203), (3, 104, 0)])
def test_partitions_are_real(two: Ranks, stage: int, held: int, weights: int) -> None:
    # 203 parameters: halves rounded up, at stage 3 a parameter each: 88 + 4 + 11 (+ padding), none left whole
    found = two.run(partition_numels, f"zero-{stage}")[0]
    assert found[1] == weights
    assert abs(found[0] - held) <= 1


@pytest.mark.parametrize("name", ZERO)
def test_fp16_skips_a_step_that_overflows(two: Ranks, name: str) -> None:
    norms, before, after = two.run(overflow_toy, name)[0]
    assert norms[:2] == pytest.approx(two.run(overflow_toy, "ddp")[0][0][:2], rel=1e-3)
    assert not math.isfinite(norms[2])
    assert same_bits(before.model, after.model)
    assert same_bits(before.optimizer, after.optimizer)
    assert before.loss_scale == {"scale": 65536.0, "growth_tracker": 2}
    assert after.loss_scale == {"scale": 32768.0, "growth_tracker": 0}


@pytest.mark.parametrize("stage", STAGES)
def test_all_ranks_find_the_same_numbers_not_finite(two: Ranks, shapes: Path, tmp_path: Path, stage: int):
    """Each rank looks at what it holds, and names what it finds."""
    config = small_config(
        shapes, engine="zero", zero_stage=stage, learning_rate=1e39, max_grad_norm=0.5,
        checkpoint_every_steps=1, validate_every_steps=100,
    )  # fmt: skip
    first, second = two.run(refusal, config, tmp_path)
    assert "holds values that are not finite at step 1; start again with a lower" in first
    assert "not finite at step 1; start again with a lower" in second
    assert list(tmp_path.iterdir()) == []


def test_unequal_step_counts_are_refused() -> None:
    with Ranks(1) as one:
        assert "needs one number for all; resume with --train.engine ddp" in one.run(load_unequal_steps)[0]


def load_unequal_steps() -> str:
    engine = build_toy("zero-1")
    state = engine.state().read()
    state.optimizer["weights/step"].fill_(3.0)
    try:
        engine.load(state)
    except CheckpointError as error:
        return str(error)
    return "loaded"


@pytest.fixture(scope="module")
def ddp_run(two: Ranks, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the capsule network with DDP."""
    folder = tmp_path_factory.mktemp("ddp")
    return losses(
        two.run(run_small, small_config(shapes, gradient_accumulation_steps=2, max_grad_norm=0.5), folder)[0]
    )


@pytest.fixture(scope="module")
def whole_runs(two: Ranks, shapes: Path, tmp_path_factory: pytest.TempPathFactory):
    """Rows and checkpoints of the capsule network under every stage, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    rows = {stage: two.run(run_small, zero_config(shapes, stage), folder / str(stage))[0] for stage in STAGES}
    return rows, folder


def zero_config(shapes: Path, stage: int):
    return small_config(
        shapes,
        engine="zero",
        zero_stage=stage,
        recipe={"average_decay": 0.8},  # of no influence on the losses
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        checkpoint_every_steps=6,
    )


@pytest.mark.parametrize("stage", STAGES)
def test_the_capsule_network_trains_as_with_ddp(whole_runs, ddp_run, stage: int) -> None:
    assert losses(whole_runs[0][stage]) == pytest.approx(ddp_run, rel=1e-5)


def test_new_processes_continue_every_stage_bit_for_bit(whole_runs, shapes: Path, tmp_path: Path) -> None:
    rows, folder = whole_runs
    with Ranks(2) as fresh:
        for stage in STAGES:  # one start of the processes for all stages
            middle = folder / str(stage) / "step-0006"
            config = zero_config(shapes, stage)
            rest = fresh.run(run_small, config, tmp_path / str(stage), middle)[0]
            assert without_times(rest) == [row for row in without_times(rows[stage]) if row["step"] > 6]
            assert same_checkpoint(tmp_path / str(stage) / "step-0012", folder / str(stage) / "step-0012")


@pytest.mark.parametrize("engine", ["ddp", "zero"])
def test_bf16_losses_are_near_those_of_fp32_and_equal_in_all_engines(
    two: Ranks, shapes: Path, ddp_run, tmp_path: Path, engine: str
) -> None:
    config = small_config(
        shapes,
        engine=engine,
        zero_stage=3,
        precision="bf16",
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
    )
    rows = two.run(run_small, config, tmp_path)[0]
    assert rows[0]["precision"] == "bf16"
    assert losses(rows) == pytest.approx(ddp_run, rel=0.03)
    assert losses(rows) != ddp_run
