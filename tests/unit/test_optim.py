"""Adam and the learning rate: the formula, its floor, TensorFlow's defaults."""

from __future__ import annotations

import math

import pytest
import torch

from capsdist.config import Optim
from capsdist.train.optim import SLOTS, build_optimizer, learning_rate_at


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 1e-3), (2000, 0.96e-3), (1000, 1e-3 * math.sqrt(0.96)), (4000, 0.9216e-3), (10**7, 1e-6)],
)
def test_the_rate_decays_continuously_down_to_the_floor(step: int, rate: float) -> None:
    assert learning_rate_at(step, Optim()) == pytest.approx(rate, rel=1e-12)


def test_a_staircase_breaks_the_continuous_property() -> None:
    optim = Optim()
    staircase = optim.learning_rate * optim.decay_rate ** (1000 // optim.decay_steps)
    assert staircase != pytest.approx(learning_rate_at(1000, optim), rel=1e-3)


def test_no_decay_is_constant() -> None:
    assert {learning_rate_at(step, Optim(decay_rate=1.0)) for step in (0, 7, 10**6)} == {1e-3}


@pytest.mark.parametrize("seed", [0, 1])
def test_adam_is_the_textbooks(seed: int) -> None:
    torch.manual_seed(seed)
    optim = Optim(learning_rate=0.02, beta1=0.8, beta2=0.95, epsilon=1e-3)
    weight = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    expected, first, second = weight.detach().clone(), torch.zeros(5, 3), torch.zeros(5, 3)
    optimizer = build_optimizer([weight], optim)
    for step in range(1, 5):
        gradient = torch.randn(5, 3, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        first = 0.8 * first + 0.2 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        update = (first / (1 - 0.8**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-3)
        expected -= 0.02 * update
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_the_state_has_the_slots_that_checkpoints_store() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer([weight], Optim())
    weight.grad = torch.ones(2)
    optimizer.step()
    assert set(optimizer.state[weight]) == {"step", *SLOTS}
