"""Runs of capsules over a stem: bit-exact resume, and of a frozen stem no state of the optimizer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from small_run import losses, run_small, same_checkpoint, small_config

from capsdist.train.checkpoint import read_checkpoint

STEM = """
from torch import nn

def stem(in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())
"""


@pytest.mark.parametrize(
    ("frozen", "epsilon_placement"), [(False, "pytorch"), (True, "pytorch"), (True, "tensorflow")]
)
def test_a_run_continues_bit_for_bit(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool, epsilon_placement: str
) -> None:
    (tmp_path / "frozen_stem.py").write_text(STEM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "frozen_stem", raising=False)
    config = small_config(shapes, kind="resnet_capsnet", max_steps=3, checkpoint_every_steps=2)
    changes = {"stem": "frozen_stem:stem", "stem_frozen": True} if frozen else {}
    optim = config.optim.model_copy(update={"epsilon_placement": epsilon_placement})
    model = config.model.model_copy(update=changes)
    config = config.model_copy(update={"model": model, "optim": optim})
    whole = run_small(config, tmp_path)
    rest = run_small(config, tmp_path / "rest", tmp_path / "step-0002")
    assert losses(rest) == losses(whole)[2:]
    assert same_checkpoint(tmp_path / "step-0003", tmp_path / "rest" / "step-0003")
    early, late = (read_checkpoint(tmp_path / f"step-000{step}").engine for step in (2, 3))
    stem = [name for name in late.model if name.startswith("stem.")]
    assert stem
    assert all(torch.equal(early.model[name], late.model[name]) == frozen for name in stem)
    assert any(name.startswith("stem.") for name in late.optimizer) != frozen
