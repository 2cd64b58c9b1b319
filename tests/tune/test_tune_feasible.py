"""Prices of points: by formula, a floor, and refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from capsdist.bench.memory import saved_bytes
from capsdist.config import CapsNetConfig, Config, Data, Train, with_values
from capsdist.models import build_model, registry
from capsdist.tune.feasible import GIB, PROCESS_BYTES, Limits, memory_here, refusal, worker_bytes

SMALL = Config(
    model=CapsNetConfig(image_size=12, conv_channels=4, conv_kernel=3, primary_kernel=3, primary_types=2,
                primary_dim=4, class_dim=4, decoder_hidden=(8, 9)),
    data=Data(lanes=4),
    train=Train(global_batch_size=12, precision="fp32"),
)  # fmt: skip


def num_parameters(config: Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config.model, config.routing).parameters())


def test_a_point_without_limits_is_let_through():
    assert refusal(SMALL, Limits()) is None


def test_parameters_at_the_limit_pass_and_one_more_does_not():
    size = num_parameters(SMALL)
    assert refusal(SMALL, Limits(max_parameters=size)) is None
    reason = refusal(SMALL, Limits(max_parameters=size - 1))
    assert reason == f"{size:,} parameters, search.max_parameters={size - 1:,}"


def test_memory_at_the_limit_passes_and_one_byte_less_does_not():
    need = worker_bytes(SMALL)
    assert refusal(SMALL, Limits(worker_bytes=need)) is None
    reason = refusal(SMALL, Limits(worker_bytes=need - 1)) or ""
    assert f"needs {need / GIB:.2f} GiB a worker or more" in reason


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model.primary_types": 0}, "model.primary_types=0: must be at least 1"),
        ({"routing.iterations": 60}, "routing.iterations=60"),
        ({"optim.learning_rate": 0.0, "model.class_dim": 0}, "model.class_dim=0: must be at least 1"),
    ],
)
def test_what_the_rules_refuse_is_refused_with_their_words(values, words):
    assert words in (refusal(with_values(SMALL, values), Limits()) or "")


@pytest.mark.parametrize("types", [2, 16])
@pytest.mark.parametrize("class_dim", [4, 32])
def test_memory_is_a_floor_of_what_training_holds(types, class_dim):
    """Weights, gradients, both moments and what autograd keeps are really there, at once."""
    config = with_values(SMALL, {"model.primary_types": types, "model.class_dim": class_dim})
    network = build_model(config.model, config.routing)
    images, labels = torch.rand(12, 1, 12, 12), torch.zeros(12, dtype=torch.long)
    parameters = list(network.parameters())
    held = saved_bytes(lambda: network(images, labels), exclude=(images, labels, *parameters))
    state = sum(p.nbytes for p in parameters) * 4
    losses = 12 * 4 * (2 * 144 + 4 * 10)  # with the images
    assert state + held < worker_bytes(config) - PROCESS_BYTES < state + held + losses


def test_a_family_without_cost_is_priced_by_its_outputs(monkeypatch):
    monkeypatch.setattr(registry, "UNPRICED", replace(registry.CAPSNET, cost=None), raising=False)
    kind = "capsdist.models.registry:UNPRICED"
    unpriced = SMALL.model_copy(update={"model": SMALL.model.model_copy(update={"kind": kind})})
    assert PROCESS_BYTES + 16 * num_parameters(SMALL) < worker_bytes(unpriced) < worker_bytes(SMALL)


def test_more_workers_need_less_each_and_zero_less_again():
    def need(**train: object) -> int:
        return worker_bytes(Config(train=Train.model_validate({"global_batch_size": 64, **train})))

    one, two = need(device="cpu"), need(device="cpu", num_workers=2)
    assert two < one
    assert (
        need(num_workers=2, engine="zero", zero_stage=3)
        < need(num_workers=2, engine="zero", zero_stage=1)
        < two
    )
    assert need(device="cpu", precision="fp32") > one


def test_this_machine_has_memory():
    assert memory_here() > 2**28
