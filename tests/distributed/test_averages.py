"""A run with an average of its weights validates, keeps and exports the average, and trains on without it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_run import losses, run_small, same_bits, small_config

from capsdist.errors import CheckpointError
from capsdist.train.checkpoint import load_model, read_checkpoint
from capsdist.train.evaluate import evaluate_checkpoint

RECIPE = {"kind": "adamw", "weight_decay": 0.1, "average_decay": 0.9, "schedule": "cosine", "warmup_steps": 3}


def test_rows_and_checkpoints_are_of_the_average(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, recipe=RECIPE)
    rows = run_small(config, tmp_path)
    without = small_config(shapes, recipe=RECIPE | {"average_decay": 0.0})
    plain = run_small(without, tmp_path / "plain")
    assert losses(rows) == losses(plain)
    end, other = (tmp_path / name / "step-0012" for name in ("", "plain"))
    assert rows[-1]["loss"] == pytest.approx(evaluate_checkpoint(end, device="cpu")[1]["loss"], rel=1e-6)
    assert plain[-1]["loss"] == pytest.approx(evaluate_checkpoint(other, device="cpu")[1]["loss"], rel=1e-6)
    assert rows[-1]["loss"] != pytest.approx(plain[-1]["loss"], rel=1e-3)
    averaged, trained = read_checkpoint(end).engine, read_checkpoint(other).engine
    assert same_bits({name: averaged.optimizer[f"{name}/trained"] for name in trained.model}, trained.model)
    weights = dict(load_model(end)[1].named_parameters())
    assert all(torch.equal(weights[name], tensor) for name, tensor in averaged.model.items())
    with pytest.raises(CheckpointError, match=r"checkpoint has '.*/trained', the network has no such tensor"):
        run_small(without, tmp_path, end)


def test_a_checkpoint_of_sgd_has_no_steps_and_one_with_steps_is_refused(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, max_steps=1, recipe={"kind": "sgd"})
    run_small(config, tmp_path)
    slots = {name.rpartition("/")[2] for name in read_checkpoint(tmp_path / "step-0001").engine.optimizer}
    assert slots == {"momentum_buffer"}
    adam = small_config(shapes, max_steps=1)
    run_small(adam, tmp_path / "adam")
    with pytest.raises(CheckpointError, match=r"checkpoint lacks '.*/momentum_buffer'"):
        run_small(config, tmp_path, tmp_path / "adam" / "step-0001")
