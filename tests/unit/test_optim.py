"""Optimizers, average of the weights and learning rate, against torch's own and against their formulas."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from capsdist.config import Optim
from capsdist.train.averages import average_weights, exchange_averages, share_at
from capsdist.train.optim import KINDS, StateForm, build_optimizer, create_state, set_step
from capsdist.train.schedule import learning_rate_at

STEPS = 7


class Network(nn.Module):
    """One parameter of every sort, in float64: weight, biases of one and two dimensions, normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(5, 6)
        self.norm = nn.LayerNorm([2, 3])
        self.bias = nn.Parameter(torch.randn(2, 3))
        self.scale = nn.Parameter(torch.randn(3))
        self.double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.norm(self.dense(inputs).view(-1, 2, 3)) * self.scale + self.bias


def changed(optim: Optim, **fields: object) -> Optim:
    return Optim.model_validate(optim.model_dump() | fields)


def torchs_own(network: Network, optim: Optim) -> torch.optim.Optimizer:
    """Torch's optimizer with the groups that the documentation of `build_optimizer` names."""
    rest = [*network.norm.parameters(), network.dense.bias, network.bias, network.scale]
    decayed = {"params": [network.dense.weight], "weight_decay": optim.weight_decay}
    groups = [decayed, {"params": rest, "weight_decay": 0.0}]
    if optim.kind == "sgd":
        return torch.optim.SGD(groups, momentum=optim.momentum, nesterov=optim.nesterov)
    kind = torch.optim.AdamW if optim.kind == "adamw" else torch.optim.Adam
    return kind(groups, betas=(optim.beta1, optim.beta2), eps=optim.epsilon)


RECIPES = {
    "adam": Optim(beta1=0.8, beta2=0.95, epsilon=1e-3),
    "adamw": Optim(kind="adamw", weight_decay=0.3, learning_rate=0.1),
    "sgd": Optim(kind="sgd", weight_decay=0.3, learning_rate=0.1),
    "nesterov": Optim(kind="sgd", momentum=0.7, nesterov=True, weight_decay=0.2, learning_rate=0.1),
    "no momentum": Optim(kind="sgd", momentum=0.0, learning_rate=0.1),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_kind_is_torchs_own_with_its_average(name: str) -> None:
    torch.seed()
    optim = changed(RECIPES[name], average_decay=0.3, schedule="cosine", warmup_steps=2)
    network = Network()
    theirs = copy.deepcopy(network)
    reference = torchs_own(theirs, optim)
    average = AveragedModel(
        theirs, avg_fn=lambda old, new, done: old + share_at(int(done) - 1, optim) * (new - old)
    )
    average.update_parameters(theirs)  # its first call copies: the average begins with the first weights
    optimizer, form = build_optimizer(network, optim), StateForm.of(optim)
    for parameter in network.parameters():
        create_state(optimizer, parameter, form)
    for step in range(STEPS):
        inputs, rate = torch.randn(4, 5, dtype=torch.float64), learning_rate_at(step, optim, STEPS)
        set_step(optimizer, rate, optim.epsilon, share_at(step, optim))
        for group in reference.param_groups:
            group["lr"] = rate
        for each, by in ((network, optimizer), (theirs, reference)):
            by.zero_grad()
            each(inputs).square().mean().backward()
            by.step()
        average_weights(optimizer, network.parameters())
        average.update_parameters(theirs)
    same: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
    trained = [parameter.detach().clone() for parameter in network.parameters()]
    torch.testing.assert_close(trained, [p.detach() for p in theirs.parameters()], **same)
    exchange_averages(optimizer, network.parameters())
    averaged = [parameter.detach() for parameter in network.parameters()]
    torch.testing.assert_close(averaged, [p.detach() for p in average.module.parameters()], **same)
    assert not any(torch.equal(*pair) for pair in zip(averaged, trained, strict=True))
    exchange_averages(optimizer, network.parameters())
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), trained, strict=True))


@pytest.mark.parametrize("seed", [0, 1])
def test_adam_is_the_textbooks(seed: int) -> None:
    torch.manual_seed(seed)
    optim = Optim(learning_rate=0.02, beta1=0.8, beta2=0.95, epsilon=1e-3)
    weight = nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    expected, first, second = weight.detach().clone(), torch.zeros(5, 3), torch.zeros(5, 3)
    optimizer = build_optimizer(nn.ParameterList([weight]), optim)
    for step in range(1, 5):
        gradient = torch.randn(5, 3, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        first = 0.8 * first + 0.2 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        update = (first / (1 - 0.8**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-3)
        expected -= 0.02 * update
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_the_state_has_the_slots_that_checkpoints_store(name: str) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer, kind = build_optimizer(nn.ParameterList([weight]), RECIPES[name]), KINDS[RECIPES[name].kind]
    weight.grad = torch.ones(2)
    optimizer.step()
    held = {slot for slot, value in optimizer.state[weight].items() if value is not None}
    assert held == {*kind.slots(RECIPES[name]), *(("step",) if kind.counts_steps else ())}


def test_without_weight_decay_there_is_one_group_and_no_empty_one_with_it() -> None:
    assert len(build_optimizer(Network(), Optim()).param_groups) == 1
    decayed = Optim(kind="adamw", weight_decay=0.1)
    assert [len(group["params"]) for group in build_optimizer(Network(), decayed).param_groups] == [1, 5]
    assert len(build_optimizer(nn.LayerNorm(3), decayed).param_groups) == 1


def test_the_decay_of_the_average_rises_to_its_limit() -> None:
    optim = Optim(average_decay=0.99)
    assert [share_at(step, optim) for step in (0, 8, 10**6)] == pytest.approx([0.9, 0.5, 0.01])
    assert share_at(10**6, Optim()) == 0.0


RATES = [
    (Optim(), 0, 1e-3),
    (Optim(), 2000, 0.96e-3),
    (Optim(), 1000, 1e-3 * math.sqrt(0.96)),
    (Optim(), 10**7, 1e-6),
    (Optim(decay_rate=1.0), 7, 1e-3),
    (Optim(schedule="constant", warmup_steps=3), 0, 0.25e-3),
    (Optim(schedule="constant", warmup_steps=3), 2, 0.75e-3),
    (Optim(schedule="constant", warmup_steps=3), 3, 1e-3),
    (Optim(warmup_steps=9), 9 + 2000, 0.96e-3),
    (Optim(schedule="cosine", learning_rate_floor=0.0), 25, 1e-3 * (1 + math.sqrt(0.5)) / 2),
    (Optim(schedule="cosine", learning_rate_floor=1e-4), 50, 5.5e-4),
    (Optim(schedule="cosine", learning_rate_floor=1e-4), 100, 1e-4),
    (Optim(schedule="cosine", learning_rate_floor=0.0, warmup_steps=20), 60, 5e-4),
    (Optim(schedule="cosine", learning_rate_floor=0.0, schedule_steps=40), 20, 5e-4),
    (Optim(schedule="cosine", schedule_steps=40), 70, 1e-6),
    (Optim(schedule="one_cycle"), 0, 1e-6),
    (Optim(schedule="one_cycle", learning_rate_floor=0.0), 15, 5e-4),
    (Optim(schedule="one_cycle"), 30, 1e-3),
    (Optim(schedule="one_cycle", learning_rate_floor=0.0), 65, 5e-4),
    (Optim(schedule="one_cycle", cycle_up=0.5, schedule_steps=20), 10, 1e-3),
    (Optim(schedule="one_cycle"), 100, 1e-6),
]


@pytest.mark.parametrize(("optim", "step", "rate"), RATES)
def test_rates_of_a_run_of_100_steps(optim: Optim, step: int, rate: float) -> None:
    assert learning_rate_at(step, optim, 100) == pytest.approx(rate, rel=1e-12)


def test_the_cosine_is_torchs_own() -> None:
    optim = Optim(schedule="cosine", learning_rate=0.4, learning_rate_floor=0.01)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9, eta_min=0.01)
    for step in range(10):
        assert learning_rate_at(step, optim, 9) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_a_staircase_breaks_the_continuous_property() -> None:
    optim = Optim()
    staircase = optim.learning_rate * optim.decay_rate ** (1000 // optim.decay_steps)
    assert staircase != pytest.approx(learning_rate_at(1000, optim, 2000), rel=1e-3)
