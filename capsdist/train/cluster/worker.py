"""What runs in every Ray Train worker: find the place in the group, then the ordinary training loop.

Ours. The loop knows no Ray; it gets a rank, a device and two callbacks: where rows go, and how a
checkpoint becomes known to Ray.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from capsdist.config import Config
from capsdist.train.cluster.events import EventSender
from capsdist.train.cluster.stop import StopPoll
from capsdist.train.loop import Events, run_training
from capsdist.train.metrics import Row, RunWriter

__all__ = ["Fault", "Job", "save_to_ray", "train_worker"]

Fault = Callable[[int, int], None]
"""Called as fault(rank, step) after every step, to fail there on purpose: tests and fault campaigns."""


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker; threads: torch threads without a GPU; mailbox: its actor."""

    config: dict[str, Any]
    run_dir: str
    threads: int
    mailbox: Any
    fault: Fault | None


def train_worker(settings: dict[str, Any]) -> Row:
    """Train as one rank and return the loop's end row; resume from the newest checkpoint that Ray knows.

    `settings`: the fields of a `Job`.
    """
    job = Job(**settings)
    context = ray.train.get_context()
    rank, device = context.get_world_rank(), ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(job.threads)

    poll = StopPoll(job.mailbox, rank=rank, world_size=context.get_world_size(), device=device)

    def should_stop(step: int) -> bool:
        if job.fault is not None:
            job.fault(rank, step)
        return poll(step)

    with _resume_folder() as resume_from, _events(job, rank) as events:
        return run_training(
            Config.model_validate(job.config),
            rank=rank,
            world_size=context.get_world_size(),
            device=device,
            events=events,
            save=save_to_ray,
            resume_from=resume_from,
            should_stop=should_stop,
        )


def save_to_ray(write: Callable[[Path], None], step: int, metrics: dict[str, float]) -> str:
    """Let rank 0 write a checkpoint and report it; a barrier of all ranks. Return the checkpoint's name.

    `ray.train.report` copies the folder into the run's storage and registers it once all ranks have called.
    """
    name = f"step_{step:08d}"
    if ray.train.get_context().get_world_rank() > 0:
        ray.train.report(metrics, checkpoint_dir_name=name)
        return name
    with tempfile.TemporaryDirectory(prefix="capsdist-") as folder:
        write(Path(folder))
        ray.train.report(metrics, ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name)
    return name


@contextlib.contextmanager
def _events(job: Job, rank: int) -> Iterator[Events]:
    """Yield where rank 0's rows go: the run's record, then the driver, which has all of them at the end."""
    if rank > 0:
        yield lambda row: None
        return
    send = EventSender(job.mailbox)
    with RunWriter(Path(job.run_dir)) as write:

        def events(row: Row) -> None:
            write(row)
            send(row)

        yield events
    send.flush()


@contextlib.contextmanager
def _resume_folder() -> Iterator[Path | None]:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)
