"""Strong and weak scaling over workers: ranks without Ray, one torch thread each, blocks of steps in turns.

Every arm trains the same network with the loop's own parts (`build_parts`, `train_on`): data, augmentation,
engine. Several ranks are DDP over gloo. With n workers and b images a step:

    weak scaling efficiency     images/s of n ranks of b images each, over n times those of one rank of b
    strong scaling efficiency   images/s of n ranks of b / n images each, over n times those of one rank of b
    independent processes       images/s of n ranks that do not talk to each other, over the same: what shared
                                caches, memory bandwidth and clock leave, the ceiling of weak scaling
    waiting share               1 - time of a step of independent processes over that of a step of the arm
    all-reduce share            time of an all-reduce of as many numbers as gradients, over that of a step
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsdist.bench.pipeline_images import random_images
from capsdist.bench.ranks import on_ranks
from capsdist.config import Config, get_preset
from capsdist.console import Log
from capsdist.data import write_split
from capsdist.storage.temporary import temporary_folder

if TYPE_CHECKING:
    from capsdist.train.parts import Parts

__all__ = ["ARMS", "Scaling", "training_config", "worker_figures", "worker_numbers"]

ARMS = ("one", "weak", "weak apart", "strong", "strong apart", "all-reduce")
"""One rank alone; all ranks with b images each; the same without communication; with b / n; without; no step
but an all-reduce of the size of the gradients."""


@dataclass(frozen=True)
class Scaling:
    """What is measured: a network, b = images of one rank, steps of a block, and how often each arm runs."""

    preset: str = "mnist_paper"
    num_images: int = 128
    steps: int = 2
    rounds: int = 12


def worker_numbers(cores: int) -> list[int]:
    """Return the numbers of workers that are measured: 2, and with as many cores 4 and 8, one a lane."""
    return [number for number in (2, 4, 8) if number <= max(cores, 2)]


def worker_figures(scaling: Scaling, cores: int, log: Log) -> dict[str, float]:
    """Return the figures of this module for 2 workers; those of n more end with `_n`. `log` gets all of them.

    Raises:
        RunError: a rank failed.
    """
    figures: dict[str, float] = {}
    with temporary_folder() as folder:
        config = training_config(folder, scaling.preset, scaling.num_images)
        for workers in worker_numbers(cores):
            found = _figures(
                workers, scaling, on_ranks(_times, workers, config.model_dump(), asdict(scaling))
            )
            log(f"{workers} workers: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
            ending = "" if workers == 2 else f"_{workers}"
            figures |= {f"{name}{ending}": value for name, value in found.items()}
    return figures


def training_config(folder: Path, preset: str, num_images: int, **train: Any) -> Config:
    """Return `preset` with random images of MNIST's size in `folder`, and `num_images` a step.

    Precision fp32, device CPU, no validation; `train` are further fields of that section.
    """
    images, labels = random_images(16 * num_images)  # a whole number of steps of up to 8 ranks
    for split in ("train", "test"):
        chosen = slice(None if split == "train" else num_images)
        classes = [f"class {number}" for number in range(10)]
        write_split(folder / "random" / split, images[chosen], labels[chosen], classes=classes)
    base = get_preset(preset)
    data = {"name": "random", "root": str(folder), "train_split": "train", "validation_split": None}
    data |= {"resident": "device"}  # several streams of a process need not share
    settings = {"global_batch_size": num_images, "epochs": 10**6, "precision": "fp32", "device": "cpu"}
    return base.model_copy(
        update={
            "data": base.data.model_copy(update=data),
            "train": base.train.model_copy(update=settings | train),
        }
    )


def _figures(workers: int, scaling: Scaling, ranks: list[dict[str, float]]) -> dict[str, float]:
    """Return the figures from the seconds of a step of each arm, the slowest rank's."""
    seconds = {arm: max(found[arm] for found in ranks) for arm in ARMS}
    alone = seconds["one"]
    return {
        "weak_scaling_efficiency": alone / seconds["weak"],
        "independent_processes_efficiency": alone / seconds["weak apart"],
        "weak_waiting_share": 1 - seconds["weak apart"] / seconds["weak"],
        "strong_scaling_efficiency": alone / seconds["strong"] / workers,
        "strong_independent_processes_efficiency": alone / seconds["strong apart"] / workers,
        "strong_waiting_share": 1 - seconds["strong apart"] / seconds["strong"],
        "all_reduce_share": seconds["all-reduce"] / seconds["weak"],
        "one_worker_images_per_s": scaling.num_images / alone,
        "weak_images_per_s": workers * scaling.num_images / seconds["weak"],
        "strong_images_per_s": scaling.num_images / seconds["strong"],
    }


def _times(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, float]:
    """On a rank: run all arms in turns; return the median seconds of a step of each."""
    import torch.distributed as dist

    scaling, rank, world_size = Scaling(**settings), dist.get_rank(), dist.get_world_size()
    times: dict[str, list[float]] = {}
    runs = _arms(Config.model_validate(config), scaling, rank, world_size)
    for number in range(scaling.rounds + 1):
        for arm, run in runs.items():
            dist.barrier()
            start = time.perf_counter()
            run()
            dist.barrier()  # a block ends with its slowest rank
            if number > 0:
                times.setdefault(arm, []).append((time.perf_counter() - start) / scaling.steps)
    return {arm: statistics.median(seconds) for arm, seconds in times.items()}


def _arms(config: Config, scaling: Scaling, rank: int, world_size: int) -> dict[str, Callable[[], object]]:
    """Return a block of steps of each arm as a call."""
    import torch
    import torch.distributed as dist

    from capsdist.train.parts import build_parts
    from capsdist.train.step import train_on

    def parts_of(images: int, ranks: int) -> Parts:
        train = config.train.model_copy(update={"global_batch_size": images})
        own = rank if ranks > 1 else 0
        chosen = config.model_copy(update={"train": train})
        return build_parts(chosen, rank=own, world_size=ranks, device=torch.device("cpu"))

    def block(parts: Parts) -> Callable[[], object]:
        batches, steps = _batches(parts), iter(range(10**9))
        return lambda: [train_on(parts, next(batches), next(steps)) for _ in range(scaling.steps)]

    whole, share = scaling.num_images, max(1, scaling.num_images // world_size)
    alone = parts_of(whole, 1)
    gradients = torch.zeros(alone.num_parameters)
    one = block(alone)
    return {
        "one": one if rank == 0 else lambda: None,
        "weak": block(parts_of(whole * world_size, world_size)),
        "weak apart": one,
        "strong": block(parts_of(whole, world_size)),
        "strong apart": block(parts_of(share, 1)),
        "all-reduce": lambda: [dist.all_reduce(gradients) for _ in range(scaling.steps)],
    }


def _batches(parts: Parts) -> Iterator[Any]:
    step = 0
    while True:
        for batch in parts.stream.epoch(*parts.stream.steps.locate(step)):
            yield batch
            step += 1
