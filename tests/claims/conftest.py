"""A way to train without Ray, for tests of the study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from capsdist.config import Config
from capsdist.launch import RunSummary
from capsdist.runs.retention import checkpoint_name
from capsdist.train.loop import run_training


def train_here(config: Config) -> RunSummary:
    """Train a run in this process, and leave its checkpoint where a launched run has it."""
    folder = Path(config.train.storage, config.train.name)

    def save(write: Callable[[Path], None], step: int, metrics: dict[str, float]) -> str:
        write(folder / checkpoint_name(step))
        return checkpoint_name(step)

    end = run_training(
        config, rank=0, world_size=1, device=torch.device("cpu"), events=lambda row: None, save=save
    )
    return RunSummary(config.train.name, str(folder), "done", end["step"], end["error_percent"], None, 0.0)


@pytest.fixture
def trained_here() -> Callable[[Config], RunSummary]:
    """As `capsdist.launch.launch`, without Ray."""
    return train_here
