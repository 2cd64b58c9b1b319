"""Every engine does TensorFlow's Adam, here written out in float64, where it is asked for."""

from __future__ import annotations

import pytest
import torch
from engine_runs import ENGINES, build_toy, toy_steps
from toy import toy, toy_batch

from capsdist.config import Optim, get_preset
from capsdist.errors import CheckpointError
from capsdist.train.checkpoint import EngineState
from capsdist.train.engine.base import Engine
from capsdist.train.engine.build import zero_requirements
from capsdist.train.engine.plain import PlainEngine
from capsdist.train.optim import epsilon_at

EPSILON = 0.02  # large, so that its place shows in every weight

zero = [
    pytest.mark.zero,
    pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements())),
]
NAMES = [pytest.param(name, marks=[] if name == "ddp" else zero) for name in ENGINES]


def tensorflow_adam(num_steps: int, *, learning_rate: float = 0.01) -> dict[str, torch.Tensor]:
    """The toy network's weights after `num_steps`, by tf.train.AdamOptimizer's update as its docs give it."""
    network = toy(seed=0).double()
    slots = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in network.named_parameters()}
    for t in range(1, num_steps + 1):
        images, targets = (tensor.double() for tensor in toy_batch(t - 1))
        network.zero_grad()
        ((network(images).scores - targets).square().sum() / 7).backward()
        lr_t = learning_rate * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            m, v = slots[name]
            m.copy_(0.9 * m + 0.1 * parameter.grad)
            v.copy_(0.999 * v + 0.001 * parameter.grad**2)
            parameter.data -= lr_t * m / (v.sqrt() + EPSILON)
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def train(name: str, first: int, last: int, state: EngineState | None = None) -> EngineState:
    """Do steps first .. last - 1, from the start or from `state`."""
    engine = build_toy(name, clip=0.0, gradient_accumulation_steps=1, tensorflow_epsilon=EPSILON)
    if state is not None:
        engine.load(state)
    toy_steps(engine, first, last, gradient_accumulation_steps=1)
    state = engine.state().read()
    engine.close()
    return state


def largest_error(state: EngineState, expected: dict[str, torch.Tensor]) -> float:
    return max(float((state.model[name].double() - value).abs().max()) for name, value in expected.items())


@pytest.mark.parametrize("name", NAMES)
def test_every_engine_does_tensorflows_adam_and_goes_on_with_it_after_a_resume(ranks, name: str) -> None:
    two = ranks(2)
    middle = two.run(train, name, 0, 3)[0]
    end = two.run(train, name, 3, 6, middle)[0]
    assert largest_error(middle, tensorflow_adam(3)) < 1e-6
    assert largest_error(end, tensorflow_adam(6)) < 1e-6
    # the mutant: with its epsilon counted from 1 again, or PyTorch's, the end is another
    steps = {key: torch.zeros(()) for key in middle.optimizer if key.endswith("/step")}
    assert (
        largest_error(train("ddp", 3, 6, EngineState(middle.model, middle.optimizer | steps)), end.model)
        > 1e-3
    )


def epsilons(name: str) -> list[float]:
    """What Adam took as epsilon in fp16 in two good steps, one that overflows, and two good ones."""
    engine = build_toy(name, precision="fp16", tensorflow_epsilon=EPSILON)
    found = []
    for step, factor in enumerate((1e-3, 1e-3, 1e30, 1e-3, 1e-3)):
        toy_steps(engine, step, step + 1, factor=factor)
        found.append(_optimizer(engine).param_groups[0]["eps"])
    engine.close()
    return found


def _optimizer(engine: Engine) -> torch.optim.Optimizer:
    return engine.optimizer if isinstance(engine, PlainEngine) else engine._engine.optimizer  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_steps_that_fp16_skips_do_not_count(ranks, name: str) -> None:
    found = ranks(2).run(epsilons, name)[0]
    optim = Optim(epsilon=EPSILON, epsilon_placement="tensorflow")
    assert found == pytest.approx([epsilon_at(t, optim) for t in (1, 2, 3, 3, 4)], rel=1e-12)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_epsilon_at_turns_every_adam_of_pytorch_into_tensorflows(options: dict[str, bool]) -> None:
    """With gradients of the size of epsilon and far below it, where its place decides."""
    torch.seed()
    optim = get_preset("mnist_official").optim
    weight = torch.nn.Parameter(torch.randn(6, 5, dtype=torch.float64))
    expected, m, v = weight.detach().clone(), torch.zeros(6, 5), torch.zeros(6, 5)
    optimizer = torch.optim.Adam([weight], lr=1e-3, eps=1.0, **options)
    for t in range(1, 40):
        gradient = torch.randn(6, 5, dtype=torch.float64) * 10.0 ** -torch.arange(6, 12)[:, None]
        weight.grad = gradient.clone()
        optimizer.param_groups[0]["eps"] = epsilon_at(t, optim)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected -= 1e-3 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / (v.sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=3e-11)


def test_parameters_of_different_steps_are_refused() -> None:
    state = train("ddp", 0, 2)
    state.optimizer["weights/step"].fill_(5.0)
    message = r"holds parameters of \[2, 5\] steps, TensorFlow's Adam needs one number for all"
    with pytest.raises(CheckpointError, match=message):
        train("ddp", 2, 3, state)
