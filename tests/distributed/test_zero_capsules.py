"""Class capsules with log priors and biases under real DeepSpeed: as with DDP, and from engine to engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from small_run import losses, run_small, same_bits, small_config

from capsdist.config import Config
from capsdist.train.checkpoint import load_model, read_checkpoint
from capsdist.train.engine.build import zero_requirements

pytestmark = [
    pytest.mark.zero,
    pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements())),
]

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"engine": "ddp"},
    **{f"zero-{stage}": {"engine": "zero", "zero_stage": stage} for stage in (1, 2, 3)},
}
OWN = {"class_capsules.log_priors": (27, 3), "class_capsules.bias": (3, 5)}


def config_of(shapes: Path, engine: str) -> Config:
    """12 steps, a checkpoint in the middle."""
    config = small_config(
        shapes, gradient_accumulation_steps=2, max_grad_norm=0.5, checkpoint_every_steps=6, **ENGINES[engine]
    )
    model = config.model.model_copy(update={"log_priors": True, "capsule_bias": True})
    return config.model_copy(update={"model": model})


@pytest.fixture(scope="module")
def two(ranks) -> Ranks:
    return ranks(2)


@pytest.fixture(scope="module")
def runs(two: Ranks, shapes: Path, tmp_path_factory: pytest.TempPathFactory):
    """Losses and checkpoints of every engine."""
    folder = tmp_path_factory.mktemp("runs")
    rows = {name: losses(two.run(run_small, config_of(shapes, name), folder / name)[0]) for name in ENGINES}
    return rows, folder


@pytest.mark.parametrize("name", ["zero-1", "zero-2", "zero-3"])
def test_priors_and_biases_train_as_with_ddp(runs, name: str) -> None:
    rows, folder = runs
    assert rows[name] == pytest.approx(rows["ddp"], rel=1e-5)
    found, expected = (read_checkpoint(folder / each / "step-0012").engine for each in (name, "ddp"))
    for key, shape in OWN.items():
        assert found.model[key].shape == shape
        assert found.model[key].abs().max() > 1e-3
        torch.testing.assert_close(found.model[key], expected.model[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loader", ENGINES)
@pytest.mark.parametrize("saver", ENGINES)
def test_every_engine_goes_on_from_every_other(
    two: Ranks, runs, shapes, tmp_path, saver: str, loader: str
) -> None:
    rows, folder = runs
    middle = folder / saver / "step-0006"
    rest = two.run(run_small, config_of(shapes, loader), tmp_path, middle)[0]
    assert losses(rest) == pytest.approx(rows["ddp"][6:], rel=1e-5)


def test_a_checkpoint_of_zero_3_is_a_network_without_deepspeed(runs) -> None:
    folder = runs[1] / "zero-3" / "step-0012"
    assert same_bits(load_model(folder)[1].state_dict(), read_checkpoint(folder).engine.model)
