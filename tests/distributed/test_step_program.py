"""Steps through static buffers, recorded as a CUDA graph would be, equal eager steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import run_small, same_bits, small_config

from capsdist.config import Config
from capsdist.data import Batch
from capsdist.train.parts import Parts, build_parts
from capsdist.train.program import WARM_UP, StepProgram
from capsdist.train.speed import (
    VARIANTS,
    Variant,
    build_program,
    compilable,
    draws_random_numbers,
    eager_reason,
    example_batch,
    fastest,
)
from capsdist.train.state import EngineState
from capsdist.train.step import train_on
from tape import tape

CPU = torch.device("cpu")
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {"optim": {"max_grad_norm": 0.5}, "train": {"gradient_accumulation_steps": 2}},
    "adamw": {
        "optim": {
            "kind": "adamw", "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 3,
            "average_decay": 0.9,
        },
        "data": {"last_batch": "carry", "mixup": 0.4, "flip": True, "rotation": 9.0, "contrast": (0.5, 2.0)},
    },
    "sgd": {"optim": {"kind": "sgd", "nesterov": True, "schedule": "one_cycle", "average_decay": 0.99}},
    "tensorflow": {
        "optim": {
            "kind": "adamw", "weight_decay": 0.1, "epsilon_placement": "tensorflow", "epsilon": 0.02,
            "learning_rate": 0.05,
        },
    },
}  # fmt: skip


def config_of(root: Path, recipe: str) -> Config:
    config = small_config(root, epochs=4)
    found = {
        section: getattr(config, section).model_dump() | options
        for section, options in RECIPES[recipe].items()
    }
    return Config.model_validate(config.model_dump() | found)


def parts_of(config: Config) -> Parts:
    return build_parts(config, rank=0, world_size=1, device=CPU)


def batches(parts: Parts, first: int) -> Iterator[tuple[int, Batch]]:
    """The steps of a run from step `first` on, with their numbers."""
    step = first
    while step < parts.total_steps:
        for batch in parts.stream.epoch(*parts.stream.steps.locate(step)):
            yield step, batch
            step += 1
            if step == parts.total_steps:
                return


def trained(
    parts: Parts, run: Callable[[Batch, int], tuple[torch.Tensor, torch.Tensor]], first: int = 0
) -> tuple[list[list[float]], EngineState, EngineState]:
    """Sums and norms of all steps, the state after step 9, and the last one."""
    found, middle = [], parts.engine.state().read()
    for step, batch in batches(parts, first):
        sums, norm = run(batch, step)
        found.append([*sums.tolist(), float(norm)])
        if step == 8:
            middle = parts.engine.state().read()
    end = parts.engine.state().read()
    parts.close()
    return found, middle, end


def program_of(parts: Parts, record=tape) -> StepProgram:
    return StepProgram(parts, record)


@pytest.mark.parametrize("recipe", ["paper", "adamw", "sgd"])
def test_a_recorded_run_equals_an_eager_one_bit_for_bit_also_continued(shapes: Path, recipe: str) -> None:
    config = config_of(shapes, recipe)
    eager = parts_of(config)
    expected, _, end = trained(eager, lambda batch, step: train_on(eager, batch, step))
    recorded = parts_of(config)
    program = program_of(recorded)
    found, middle, state = trained(recorded, program)
    assert program.recorded
    assert program.failure is None
    assert found == expected
    assert same_bits(state.model, end.model)
    assert same_bits(state.optimizer, end.optimizer)
    rest = parts_of(config)
    rest.engine.load(middle)
    continued, _, state = trained(rest, program_of(rest), first=9)
    assert continued == expected[9:]
    assert same_bits(state.model, end.model)
    assert same_bits(state.optimizer, end.optimizer)


def test_tensorflows_epsilon_from_tensors_is_that_of_floats_to_rounding(shapes: Path) -> None:
    config = config_of(shapes, "tensorflow")
    eager, unrecorded, recorded = (parts_of(config) for _ in range(3))
    _, _, end = trained(eager, lambda batch, step: train_on(eager, batch, step))
    _, _, plain = trained(unrecorded, program_of(unrecorded, record=lambda run: run))
    _, middle, state = trained(recorded, program_of(recorded))
    assert same_bits(state.model, plain.model)
    assert same_bits(state.optimizer, plain.optimizer)
    for name, weight in end.model.items():
        torch.testing.assert_close(state.model[name], weight, rtol=0, atol=2e-6)
    steps = {name: value for name, value in end.optimizer.items() if name.endswith("/step")}
    assert same_bits(steps, {name: state.optimizer[name] for name in steps})
    rest = parts_of(config)
    rest.engine.load(middle)
    assert same_bits(trained(rest, program_of(rest), first=9)[2].model, state.model)


def test_the_tape_keeps_floats_as_a_graph_does(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: a program whose learning rate is a float is found out."""
    config = config_of(shapes, "paper")
    expected = trained(*(lambda parts: (parts, program_of(parts)))(parts_of(config)))[0]
    parts = parts_of(config)
    program = program_of(parts)
    engine = program._engine
    monkeypatch.setattr(engine, "step_from", lambda numbers: engine.step(float(numbers[0])))
    found = trained(parts, program)[0]
    assert found[: WARM_UP + 1] == expected[: WARM_UP + 1]
    assert found != expected


def test_a_recording_that_fails_leaves_eager_steps_and_a_line(shapes: Path) -> None:
    def refuse(run):
        run()  # as a capture that fails late: gradients and state of its own are left behind
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    config, said = config_of(shapes, "paper"), []
    parts = parts_of(config)
    before = parts.engine.state().read()
    program = StepProgram(parts, lambda run: refuse(lambda: None), note=said.append)
    found = trained(parts, program)[0]
    again = parts_of(config)
    again.engine.load(before)
    assert found == trained(again, lambda batch, step: train_on(again, batch, step))[0]
    (line,) = said
    assert line.endswith("(operation not permitted when stream is capturing)")
    assert not program.recorded


def test_a_trial_takes_the_fastest_and_leaves_no_trace(shapes: Path) -> None:
    parts = parts_of(config_of(shapes, "paper"))
    times = iter([3.0, 1.0, 2.0])
    before, generator = parts.engine.state().read(), torch.get_rng_state()
    candidates = [*VARIANTS[:2], Variant(compiled=True)]

    def seconds(run: Callable[[], object]) -> float:
        run()
        torch.rand(3)
        return next(times)

    options = {"record": lambda run: run, "seconds": seconds, "backend": "eager"}
    variant, notes = fastest(parts, example_batch(parts), candidates, **options)
    assert variant == Variant(channels_last=True)
    assert notes == ["time of a step: nchw 3e+03 ms; channels_last 1e+03 ms; nchw, compiled 2e+03 ms"]
    assert torch.equal(torch.get_rng_state(), generator)
    after = parts.engine.state().read()
    assert same_bits(before.model, after.model)
    assert same_bits(before.optimizer, after.optimizer)
    # a compiler that is not there, or no memory: the step runs as it is
    variant, notes = fastest(
        parts, example_batch(parts), candidates[2:], **options | {"backend": "none such"}
    )
    assert variant == Variant()
    assert notes[0].startswith("nchw, compiled: not possible here (")
    parts.close()


def test_channels_last_trains_the_same_network(shapes: Path) -> None:
    config = config_of(shapes, "paper")
    plain, other = parts_of(config), parts_of(config)
    other.engine.use_channels_last()
    weight = other.engine.model.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    slot = other.engine.optimizer.state[other.engine.model.primary_capsules.conv.weight]["exp_avg"]
    assert slot.is_contiguous(memory_format=torch.channels_last)
    assert other.engine.model.class_capsules.packed_weights.is_contiguous()
    expected = trained(plain, lambda batch, step: train_on(plain, batch, step))[2]
    found = trained(other, build_program(other, Variant(channels_last=True), tape))[2]
    for name, tensor in expected.model.items():
        torch.testing.assert_close(found.model[name], tensor, rtol=0, atol=1e-4)


def test_stem_and_decoder_are_compiled_and_not_routing(shapes: Path) -> None:
    parts = parts_of(config_of(shapes, "paper"))
    model = parts.engine.model
    assert compilable(model) == [model.conv, model.primary_capsules, model.decoder]
    parts.close()


def test_reasons_for_eager_steps(shapes: Path, tmp_path: Path) -> None:
    parts = parts_of(config_of(shapes, "paper"))
    assert eager_reason(parts) == "no GPU"
    assert not draws_random_numbers(parts, example_batch(parts))
    dropout = parts_of(small_config(shapes, kind="baseline_cnn"))
    assert draws_random_numbers(dropout, example_batch(dropout))
    for each in (parts, dropout):
        each.close()
    start = run_small(small_config(shapes, max_steps=1, speed="plain"), tmp_path)[0]
    assert (start["speed"], "variant" in start) == ("eager (train.speed=plain)", False)
