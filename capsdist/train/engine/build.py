"""Build an engine from a configuration, and check whether it can run here."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from capsdist.config import Config
from capsdist.config.rules import capsule_rank_problems
from capsdist.console import Log
from capsdist.errors import ConfigError, RunError
from capsdist.train.engine.base import Engine
from capsdist.train.engine.operators import Sign, prepare_operators
from capsdist.train.engine.plain import PlainEngine
from capsdist.train.engine.zero import ZeroEngine
from capsdist.train.precision import Precision, resolve_precision
from capsdist.train.shares import images_per_rank, microbatch_of

__all__ = ["build_engine", "prepare_engine", "resolve_engine", "zero_requirements"]


def resolve_engine(name: str, *, world_size: int, device_type: str) -> Literal["ddp", "zero"]:
    """Return the engine that `name` (ddp, zero or auto) means: auto is zero on several GPUs, else ddp.

    At one rank ddp runs without any wrapper.
    """
    if name == "auto":
        return "zero" if world_size > 1 and device_type == "cuda" else "ddp"
    return name  # type: ignore[return-value]  # the configuration allows these names only


def zero_requirements() -> str | None:
    """Return what DeepSpeed lacks to run on this machine's CPU, as one line with the remedy; None if nothing.

    It compiles an extension when it first starts on a CPU, and fails with a long traceback where it cannot.
    """
    lacking = []
    if not _program("ninja"):
        lacking.append("ninja (pip install ninja)")
    compiler = os.environ.get("CXX", "c++")
    if not _program(compiler):
        lacking.append(f"a C++ compiler: {compiler!r} is not there (apt install g++, or set CXX)")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lacking.append("Python's headers (apt install python3-dev)")
    if not lacking:
        return None
    return f"train.engine='zero' on a CPU needs {' and '.join(lacking)}; or use --train.engine ddp"


def prepare_engine(config: Config, *, world_size: int, device: torch.device, log: Log, sign: Sign) -> None:
    """Do what may take minutes before an engine can be built, without a collective's time limit. Collective.

    That is the compilation of DeepSpeed's operator on a CPU; `log` is told of it, and `sign` is
    called often meanwhile.

    Raises:
        RunError: DeepSpeed cannot run here.
    """
    engine = resolve_engine(config.train.engine, world_size=world_size, device_type=device.type)
    if engine != "zero" or device.type != "cpu":
        return
    if lacking := zero_requirements():
        raise RunError(lacking)
    prepare_operators(log, sign)


def build_engine(
    config: Config, model: nn.Module, *, rank: int, world_size: int, device: torch.device
) -> Engine:
    """Return the engine of `config` around `model`, ready for the first step.

    With more than one rank torch.distributed must be initialised (Ray does it; a test does it itself).
    Weights may differ between ranks before: those of rank 0 win.

    Raises:
        RunError: no process group, or DeepSpeed cannot run here.
        ConfigError: fp16 on a CPU; fp16 or ZeRO 3 with capsule ranks.
    """
    train = config.train
    precision = resolve_precision(train.precision, device)
    if world_size > 1 and not dist.is_initialized():
        raise RunError(f"world_size={world_size} needs torch.distributed; call init_process_group first")
    engine = resolve_engine(train.engine, world_size=world_size, device_type=device.type)
    if train.capsule_ranks > 1:
        _check_split(config, engine, precision, world_size)
    if engine == "ddp":
        return PlainEngine(
            model, config.optim, rank=rank, world_size=world_size, device=device, precision=precision
        )
    if device.type == "cpu" and (lacking := zero_requirements()):
        raise RunError(lacking)
    # DeepSpeed is given the largest microbatch; slices of a step may be uneven and the last step short.
    share = images_per_rank(train, world_size)
    microbatch_size = microbatch_of(train, share)
    return ZeroEngine(
        model,
        config.optim,
        stage=train.zero_stage,
        rank=rank,
        world_size=world_size,
        device=device,
        precision=precision,
        microbatch_size=microbatch_size,
        gradient_accumulation_steps=-(-share // microbatch_size),
    )


def _check_split(config: Config, engine: str, precision: Precision, world_size: int) -> None:
    """Refuse what `auto` has chosen and class capsules that are split over ranks cannot have."""
    chosen = {"precision": precision, "engine": engine, "num_workers": world_size}
    train = config.train.model_copy(update=chosen)
    if found := [*capsule_rank_problems(config.model_copy(update={"train": train}))]:
        raise ConfigError(found)


def _program(name: str) -> str | None:
    """The path of a program, on the PATH or beside this Python (an environment need not be activated)."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
