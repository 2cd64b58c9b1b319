"""Runs of bare engines on the toy network, to be called on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from small_run import own_rank
from torch import Tensor
from toy import toy, toy_batch, toy_config

from capsdist.train.checkpoint import EngineState
from capsdist.train.engine.base import Engine
from capsdist.train.engine.build import build_engine
from capsdist.train.engine.plain import PlainEngine
from capsdist.train.engine.zero import ZeroEngine

ENGINES = {"ddp": ("ddp", 1), **{f"zero-{stage}": ("zero", stage) for stage in range(4)}}
AVERAGE_SHARE = 0.25
RECIPES: dict[str, dict[str, object]] = {
    "adamw": {"kind": "adamw", "weight_decay": 0.5, "average_decay": 0.75},
    "sgd": {"kind": "sgd", "nesterov": True, "weight_decay": 0.5, "average_decay": 0.75},
    "no momentum": {"kind": "sgd", "momentum": 0.0, "average_decay": 0.75},
}
"""Fields of `optim` with two groups of parameters and an average, and without any slot of the optimizer's."""


def build_toy(
    name: str,
    *,
    clip: float = 0.5,
    gradient_accumulation_steps: int = 2,
    precision: str = "fp32",
    tensorflow_epsilon: float | None = None,
    recipe: Mapping[str, object] | None = None,
    frozen: bool = False,
) -> Engine:
    """The engine `name` around the toy network; ranks begin with different weights, those of rank 0 win.

    fp16 passes by `build_engine`, which refuses it on a CPU: here it is to show the loss scale.
    """
    rank, world_size = own_rank()
    kind, stage = ENGINES[name]
    device, network = torch.device("cpu"), toy(seed=rank)
    network.dense.requires_grad_(not frozen)
    config = toy_config(
        kind,
        stage,
        clip=clip,
        gradient_accumulation_steps=gradient_accumulation_steps,
        precision=precision,
        tensorflow_epsilon=tensorflow_epsilon,
        recipe=recipe,
    )
    if precision != "fp16":
        return build_engine(config, network, rank=rank, world_size=world_size, device=device)
    where: Any = {"rank": rank, "world_size": world_size, "device": device, "precision": "fp16"}
    if kind == "ddp":
        return PlainEngine(network, config.optim, **where)
    return ZeroEngine(
        network,
        config.optim,
        stage=stage,
        microbatch_size=2,
        gradient_accumulation_steps=gradient_accumulation_steps,
        **where,
    )


def toy_steps(
    engine: Engine, first: int, last: int, *, gradient_accumulation_steps: int = 2, factor: float = 1.0
) -> list[float]:
    """Do steps first .. last - 1 on 7 images shared out unevenly; return the gradient norms."""
    size = -(-7 // engine.world_size)
    own = slice(engine.rank * size, (engine.rank + 1) * size)
    norms = []
    for step in range(first, last):
        parts = [tensor[own].chunk(gradient_accumulation_steps) for tensor in toy_batch(step)]
        for number, (images, targets) in enumerate(zip(*parts, strict=True)):
            with engine.microbatch(last=number == len(parts[0]) - 1):
                error = (engine.forward(images).scores - targets).square().sum() / 7
                engine.backward(error * engine.world_size * factor)
        norms.append(engine.step(0.01, AVERAGE_SHARE).item())
    return norms


def train_toy(
    name: str, steps: int, options: dict[str, Any] | None = None
) -> tuple[list[float], EngineState]:
    """Train from the start; return gradient norms and the state."""
    engine = build_toy(name, **(options or {}))
    norms = toy_steps(engine, 0, steps)
    state = engine.state().read()
    engine.close()
    return norms, state


def continue_toy(name: str, state: EngineState, steps: int) -> tuple[EngineState, list[float]]:
    """Load `state` into a fresh engine; return its state, untouched, and the norms of 3 steps after it."""
    engine = build_toy(name)
    engine.load(state)
    untouched = engine.state().read()
    norms = toy_steps(engine, steps, steps + 3)
    engine.close()
    return untouched, norms


def frozen_toy(saver: str, loader: str) -> tuple[EngineState, EngineState, list[float], list[float]]:
    """With a layer frozen: the state of 2 steps, what another engine holds of it, norms of both after it."""
    first = build_toy(saver, frozen=True)
    toy_steps(first, 0, 2)
    state = first.state().read()
    norms = toy_steps(first, 2, 4)
    first.close()
    whole = [state]
    if dist.is_initialized():
        dist.broadcast_object_list(whole)
    other = build_toy(loader, frozen=True)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.zero_()  # as far as it is here
    other.load(whole[0])
    return whole[0], other.state().read(), norms, toy_steps(other, 2, 4)


def overflow_toy(name: str) -> tuple[list[float], EngineState, EngineState]:
    """In fp16, two good steps, one that overflows, one good one; states before and after the third."""
    engine = build_toy(name, precision="fp16")
    norms = toy_steps(engine, 0, 2, factor=1e-3)
    before = engine.state().read()
    norms += toy_steps(engine, 2, 3, factor=1e30)
    after = engine.state().read()
    norms += toy_steps(engine, 3, 4, factor=1e-3)
    engine.close()
    return norms, before, after


def averaged_toy(name: str) -> tuple[Tensor, EngineState, EngineState, EngineState]:
    """Scores with averaged weights after 3 steps; states before and after that, and after 2 more steps."""
    engine = build_toy(name, recipe=RECIPES["sgd"])
    toy_steps(engine, 0, 3)
    before = engine.state().read()
    with torch.no_grad():
        engine.forward(toy_batch(0)[0])  # at stage 3 this has gathered the trained weights
        with engine.averaged():
            scores = engine.forward(toy_batch(0)[0]).scores
    after = engine.state().read()
    toy_steps(engine, 3, 5)
    end = engine.state().read()
    engine.close()
    return scores, before, after, end


def partition_numels(name: str) -> tuple[int, int]:
    """Numbers of the toy's parameters that this rank's optimizer and network hold, before a step."""
    engine = build_toy(name)
    assert isinstance(engine, ZeroEngine)
    held = sum(flat.numel() for flat in engine._held_weights())
    weights = sum(parameter.numel() for parameter in engine.model.parameters())
    engine.close()
    return held, weights
