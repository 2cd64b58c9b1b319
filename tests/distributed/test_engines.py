"""The plain engine's contract, on one rank and on two; `test_zero.py` holds ZeRO to the same."""

from __future__ import annotations

import math

import pytest
import torch
from engine_runs import build_toy, continue_toy, overflow_toy, toy_steps, train_toy
from small_run import same_bits
from toy import toy, toy_config

from capsdist.errors import CheckpointError, ConfigError, RunError
from capsdist.train.checkpoint import EngineState
from capsdist.train.engine.build import build_engine, resolve_engine, zero_requirements


def test_two_ranks_take_the_steps_of_one(ranks) -> None:
    norms, state = train_toy("ddp", 5)
    results = ranks(2).run(train_toy, "ddp", 5)
    assert results[0][0] == pytest.approx(norms, rel=1e-5)
    assert results[1][0] == results[0][0]
    assert results[1][1] == EngineState({}, {})  # the state is rank 0's
    for name, tensor in state.model.items():
        torch.testing.assert_close(results[0][1].model[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_state_is_complete_and_a_copy() -> None:
    engine = build_toy("ddp")
    fresh = engine.state().read()
    assert all((tensor == 0).all() for tensor in fresh.optimizer.values())
    toy_steps(engine, 0, 3)
    state = engine.state().read()
    assert set(state.model) == set(engine.model.state_dict())
    assert {name: int(t) for name, t in state.optimizer.items() if name.endswith("/step")} == {
        "dense.weight/step": 3, "dense.bias/step": 3, "weights/step": 3,
    }  # fmt: skip
    toy_steps(engine, 3, 4)
    assert not same_bits(state.model, engine.state().read().model)


def test_a_loaded_state_is_the_saved_one_and_goes_on_alike() -> None:
    engine = build_toy("ddp")
    toy_steps(engine, 0, 4)
    state = engine.state().read()
    norms = toy_steps(engine, 4, 7)
    untouched, continued = continue_toy("ddp", state, 4)
    assert same_bits(untouched.model, state.model)
    assert same_bits(untouched.optimizer, state.optimizer)
    assert continued == norms
    # the mutant: without Adam's step count the same moments give other steps
    steps = {name: torch.zeros(()) for name in state.optimizer if name.endswith("/step")}
    amnesiac = EngineState(state.model, state.optimizer | steps)
    assert continue_toy("ddp", amnesiac, 4)[1][1:] != norms[1:]


def test_clipping_limits_the_update_and_reports_the_norm_before_it() -> None:
    free, clipped = build_toy("ddp", clip=0.0), build_toy("ddp", clip=0.5)
    norms = toy_steps(free, 0, 1), toy_steps(clipped, 0, 1)
    assert norms[0] == norms[1]
    moments = [engine.state().read().optimizer for engine in (free, clipped)]
    first = torch.cat([m.flatten() for name, m in moments[0].items() if name.endswith("exp_avg")])
    second = torch.cat([m.flatten() for name, m in moments[1].items() if name.endswith("exp_avg")])
    torch.testing.assert_close(second, first * 0.5 / norms[0][0], rtol=1e-4, atol=1e-7)


def test_fp16_skips_a_step_that_overflows_and_halves_the_scale() -> None:
    norms, before, after = overflow_toy("ddp")
    exact = [1e-3 * norm for norm in train_toy("ddp", 2)[0]]
    assert norms[:2] == pytest.approx(exact, rel=1e-2)
    assert [math.isfinite(norm) for norm in norms] == [True, True, False, True]
    assert same_bits(before.model, after.model)
    assert same_bits(before.optimizer, after.optimizer)
    assert before.loss_scale == {"scale": 65536.0, "growth_tracker": 2}
    assert after.loss_scale == {"scale": 32768.0, "growth_tracker": 0}


def test_the_loss_scale_is_part_of_the_state() -> None:
    engine = build_toy("ddp", precision="fp16")
    toy_steps(engine, 0, 1)
    state = engine.state().read()
    engine.load(EngineState(state.model, state.optimizer, {"scale": 1024.0, "growth_tracker": 7}))
    assert engine.state().read().loss_scale == {"scale": 1024.0, "growth_tracker": 7}


def test_float64_stays_float64() -> None:
    engine = build_engine(toy_config(), toy().double(), rank=0, world_size=1, device=torch.device("cpu"))
    with engine.microbatch(last=True):
        scores = engine.forward(torch.ones(2, 1, 5, 5, dtype=torch.float64)).scores
        engine.backward(scores.sum())
    engine.step(0.01)
    kept = engine.state().read()
    tensors = {name: t for name, t in {**kept.model, **kept.optimizer}.items() if not name.endswith("/step")}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": None}, "lacks 'weights'"),
        ({"weights": torch.zeros(3, 7)}, r"'weights' of shape \[3, 7\], the network \[7, 3\]"),
        ({"more": torch.zeros(1)}, "has 'more', the network has no such tensor"),
    ],
)
def test_a_state_of_another_network_is_refused(change: dict[str, torch.Tensor | None], message: str) -> None:
    engine = build_toy("ddp")
    state = engine.state().read()
    model = {name: tensor for name, tensor in (state.model | change).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        engine.load(EngineState(model, state.optimizer))


@pytest.mark.parametrize(
    ("name", "world_size", "device", "engine"),
    [
        ("auto", 1, "cpu", "ddp"), ("auto", 4, "cpu", "ddp"), ("auto", 1, "cuda", "ddp"),
        ("auto", 4, "cuda", "zero"), ("zero", 1, "cpu", "zero"), ("ddp", 4, "cuda", "ddp"),
    ],
)  # fmt: skip
def test_auto_is_zero_on_several_gpus(name: str, world_size: int, device: str, engine: str) -> None:
    assert resolve_engine(name, world_size=world_size, device_type=device) == engine


def test_several_ranks_without_a_group_are_refused() -> None:
    with pytest.raises(RunError, match=r"world_size=2 needs torch\.distributed; call init_process_group"):
        build_engine(toy_config(), toy(), rank=0, world_size=2, device=torch.device("cpu"))


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"train\.precision='fp16': is for GPUs; use fp32 or bf16"):
        build_engine(toy_config(precision="fp16"), toy(), rank=0, world_size=1, device=torch.device("cpu"))


def test_zero_says_in_one_line_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nowhere")
    message = (
        "train.engine='zero' on a CPU needs ninja (pip install ninja) and a C++ compiler: 'no-such-compiler' "
        "is not there (apt install g++, or set CXX) and Python's headers (apt install python3-dev); "
        "or use --train.engine ddp"
    )
    assert zero_requirements() == message
    with pytest.raises(RunError) as error:
        build_engine(toy_config("zero"), toy(), rank=0, world_size=1, device=torch.device("cpu"))
    assert str(error.value) == message
