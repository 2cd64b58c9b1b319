"""Every checkpoint goes everywhere: saved by DDP or ZeRO 0 to 3 on 1, 2 or 4 ranks, loaded by any on any.

The whole matrix, 15 by 15, through the files, equal to the last bit. An engine is built once for all that it
loads, as building costs seconds and loading does not. The states have every sort of tensor: two groups of
parameters, moments, step counts and averages.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_runs import ENGINES, RECIPES, build_toy, toy_steps
from small_run import own_rank, same_bits

from capsdist.config import Config
from capsdist.train.checkpoint import Checkpoint, EngineState, read_checkpoint, write_checkpoint
from capsdist.train.engine.build import zero_requirements

pytestmark = [
    pytest.mark.zero,
    pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements())),
]

SIZES = (1, 2, 4)
STEPS = 3


def save(name: str, folder: Path) -> None:
    """Train a few steps and save; another number of steps on other numbers of ranks, so that all differ."""
    rank, world_size = own_rank()
    engine = build_toy(name, gradient_accumulation_steps=1, recipe=RECIPES["adamw"])
    toy_steps(engine, 0, STEPS + world_size, gradient_accumulation_steps=1)
    state = engine.state().read()
    engine.close()
    if rank == 0:
        write_checkpoint(folder / f"{name} on {world_size}", Checkpoint(state, STEPS, 0, {}, Config()))


def load_all(name: str, folder: Path) -> tuple[list[str], float]:
    """Load every checkpoint; return those that did not come back, and the gradient norm after the first."""
    engine = build_toy(name, gradient_accumulation_steps=1, recipe=RECIPES["adamw"])
    changed = []
    paths = sorted(folder.iterdir())
    for path in paths:
        state = read_checkpoint(path).engine
        engine.load(state)
        if not equal(engine.state().read(), state):
            changed.append(path.name)
    engine.load(read_checkpoint(paths[0]).engine)
    [norm] = toy_steps(engine, STEPS, STEPS + 1, gradient_accumulation_steps=1)
    engine.close()
    return changed, norm


def equal(found: EngineState, wanted: EngineState) -> bool:
    return same_bits(found.model, wanted.model) and same_bits(found.optimizer, wanted.optimizer)


@pytest.fixture(scope="module")
def saved(ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 15 checkpoints."""
    folder = tmp_path_factory.mktemp("saved")
    for size in SIZES:
        for name in ENGINES:
            ranks(size).run(save, name, folder)
    return folder


def test_all_savers_store_the_same_names_and_shapes_and_other_numbers(saved: Path) -> None:
    states = {path.name: read_checkpoint(path).engine for path in saved.iterdir()}
    assert len(states) == len(ENGINES) * len(SIZES)
    forms = {
        tuple((key, tensor.dtype, tensor.shape) for key, tensor in sorted({**s.model, **s.optimizer}.items()))
        for s in states.values()
    }
    assert len(forms) == 1
    for size in SIZES:  # a property of equal states would say nothing
        assert not any(equal(states[f"ddp on {size}"], states[f"ddp on {o}"]) for o in SIZES if o != size)


@pytest.fixture(scope="module")
def norms() -> dict[str, float]:
    """The gradient norm of the step after the first checkpoint, by loader; filled by the tests."""
    return {}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("size", SIZES)
def test_every_checkpoint_loads_to_the_last_bit(ranks, saved: Path, norms, name: str, size: int) -> None:
    changed, norm = ranks(size).run(load_all, name, saved)[0]
    assert changed == []
    assert norm == pytest.approx(next(iter(norms.values()), norm), rel=1e-5)
    norms[f"{name} on {size}"] = norm


def test_one_bit_would_be_seen(saved: Path) -> None:
    """The mutant of the property."""
    state = read_checkpoint(next(saved.iterdir())).engine
    for key in ("model", "optimizer"):
        tensors = dict(getattr(state, key))
        name = next(name for name, tensor in tensors.items() if tensor.numel() > 1)
        spoilt = tensors[name].clone()
        spoilt.view(-1).view(torch.int32)[-1] ^= 1
        assert not same_bits(tensors | {name: spoilt}, tensors)
