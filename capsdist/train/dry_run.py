"""A few steps with the real data, to see what they take: time and memory by phase. Nothing is kept."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from capsdist.config import Config
from capsdist.train.metrics import Row
from capsdist.train.parts import build_parts, start_row
from capsdist.train.phases import PhaseMeter
from capsdist.train.step import train_on

__all__ = ["dry_run"]


def dry_run(
    config: Config,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    events: Callable[[Row], None],
    should_stop: Callable[[int], bool] = lambda step: False,
) -> Row:
    """Do the steps of `config`, without validation and checkpoints; return an `end` row, on every rank.

    `events` gets, on rank 0, a `start` row and at the end one of kind `phases`: `num_steps` measured,
    `images_per_s`, and by phase `seconds` per step and `peak_bytes`, each the most of any rank. The first of
    several steps is not timed, because it sets things up. Every rank calls it, as `run_training`.

    Raises:
        As `run_training`.
    """
    parts = build_parts(config, rank=rank, world_size=world_size, device=device)
    stream, meter, began = parts.stream, PhaseMeter(device), time.perf_counter()
    try:
        start = start_row(parts, resumed_step=0, speed="eager (dry run)")
        if rank == 0:
            events(start)
        step, stopped, measured, timed = 0, False, 0, 0
        while step < parts.total_steps and not stopped:
            meter("data")
            for batch in stream.epoch(*stream.steps.locate(step)):
                train_on(parts, batch, step, meter)
                meter("data")
                step += 1
                timed, measured = timed + 1, measured + batch.num_global
                if step == 1 < parts.total_steps:
                    meter.forget_times()
                    timed, measured = 0, 0
                stopped = should_stop(step) and step < parts.total_steps
                if stopped or step == parts.total_steps:
                    break
        meter("")
        seconds, peaks = meter.most(world_size)
        total = sum(seconds.values())
        speed = measured / total if total else 0.0
        place = {"step": step, "epoch": stream.steps.epochs(step)}
        per_step = {name: value / max(timed, 1) for name, value in seconds.items()}
        if rank == 0:
            row = {"num_steps": timed, "images_per_s": speed, "seconds": per_step, "peak_bytes": peaks}
            events({"kind": "phases", **place, "device": start["device"], **row})
        wall_s = time.perf_counter() - began
        end = {"stopped": stopped, "error_percent": None, "images_per_s": speed, "wall_time_s": wall_s}
        return {"kind": "end", **place, **end}
    finally:
        parts.close()
