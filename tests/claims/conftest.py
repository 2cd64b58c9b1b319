"""A way to train the cells of a grid without Ray, for tests of the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from capsdist.claims.study import Train
from capsdist.config import Config
from capsdist.runs.retention import checkpoint_name
from capsdist.train.loop import run_training
from capsdist.tune.cells import Cell, grid_problems


class TrainsHere:
    """Trains each cell once, in this process, and leaves its checkpoint where a grid has it."""

    def __init__(self) -> None:
        self.known: dict[str, Cell] = {}

    def __call__(self, grid: Config, cells: Mapping[str, Config]) -> dict[str, Cell]:
        assert grid_problems(cells) == []
        for name, config in cells.items():
            if name not in self.known:
                place = Path(grid.train.storage, grid.train.name, "trials", name)
                self.known[name] = _trained(name, config, place)
        return {name: self.known[name] for name in cells}


def _trained(name: str, config: Config, place: Path) -> Cell:
    def save(write: Callable[[Path], None], step: int, metrics: dict[str, float]) -> str:
        write(place / checkpoint_name(step))
        return checkpoint_name(step)

    end = run_training(
        config, rank=0, world_size=1, device=torch.device("cpu"), events=lambda row: None, save=save
    )
    return Cell(name, str(place), "finished", "", end["step"], end["error_percent"], None)


@pytest.fixture
def trains_here() -> Train:
    """As `capsdist.cli.grids.train_cells`, without Ray."""
    return TrainsHere()
