"""Ranks that serve all tests of a session, because starting them costs seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(1, str(Path(__file__).parents[1] / "data"))
from ranks import Ranks
from small_run import write_data

sys.path.append(str(Path(__file__).parents[1] / "data"))


_STARTED: dict[int, Ranks] = {}


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End all ranks with the last test of this folder: the threads of gloo poll while nothing is asked."""
    if nextitem is None or nextitem.path.parent != item.path.parent:
        for each in _STARTED.values():
            each.close()


@pytest.fixture(scope="session")
def ranks() -> Callable[[int], Ranks]:
    """Return the `Ranks` of a size that this folder shares: started at first use, anew after a break."""

    def get(world_size: int) -> Ranks:
        if world_size not in _STARTED or _STARTED[world_size].closed:
            _STARTED[world_size] = Ranks(world_size)
        return _STARTED[world_size]

    return get


@pytest.fixture(scope="session")
def on_ranks(ranks: Callable[[int], Ranks]) -> Callable[..., Any]:
    """Return ``on_ranks(world_size, function, *args)``: rank 0's result; one rank is this process itself."""

    def run(world_size: int, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args) if world_size == 1 else ranks(world_size).run(function, *args)[0]

    return run


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the invented data set."""
    root = tmp_path_factory.mktemp("data")
    write_data(root)
    return root


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Ranks run on one thread; so does what is compared with them here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
