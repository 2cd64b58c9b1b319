"""A run of seconds for fault campaigns: a network of 4,000 parameters on random images, 64 steps.

Ours. What is asked of it is not what it learns but that nothing is lost: shapes are odd, the last step of an
epoch is short, and checkpoints fall into the middle of epochs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from capsdist.config import Cluster, Config, Data, Model, Train
from capsdist.data import write_split

if TYPE_CHECKING:
    from capsdist.bench.lineage import Recorder

__all__ = [
    "CHECKPOINT_EVERY", "EPOCHS", "NUM_TRAIN", "STEPS_PER_EPOCH", "WORKERS", "run_undisturbed", "tiny_config",
    "write_tiny",
]  # fmt: skip

NUM_TRAIN, NUM_TEST, GLOBAL_BATCH = 92, 23, 12
STEPS_PER_EPOCH, EPOCHS, CHECKPOINT_EVERY, WORKERS = 8, 8, 5, 2
_START_LIMIT_S = 120.0


def write_tiny(root: Path) -> None:
    """Write random images of 12x12 pixels and 10 classes as the data set `tiny`, in several shards."""
    generator = np.random.default_rng(0)
    for split, num in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        images = generator.integers(0, 256, (num, 1, 12, 12), dtype=np.uint8)
        write_split(
            root / "tiny" / split,
            images,
            np.arange(num) % 10,
            classes=list("0123456789"),
            block_size=16,
            shard_size=48,
        )


def tiny_config(root: Path, storage: Path, name: str, *, max_failures: int = 0) -> Config:
    """Return the configuration of a run on `write_tiny(root)`: 2 workers of one core, DDP, fp32."""
    return Config(
        model=Model(
            image_size=12, conv_channels=4, conv_kernel=3, primary_kernel=3, primary_types=2, primary_dim=4,
            class_dim=4, decoder_hidden=(8, 9),
        ),
        data=Data(name="tiny", root=str(root), lanes=4, window=16),
        train=Train(
            name=name, storage=str(storage), workers=WORKERS, device="cpu", epochs=EPOCHS, precision="fp32",
            global_batch=GLOBAL_BATCH, checkpoint_every_steps=CHECKPOINT_EVERY,
        ),
        cluster=Cluster(cpus_per_worker=1, max_failures=max_failures),
    )  # fmt: skip


def run_undisturbed(config: Config, recorder: Recorder) -> Callable[[], Path]:
    """Start the same training on plain processes, without Ray; return what waits for its last checkpoint.

    The processes are forked: call it before Ray and torch have threads here.

    Raises:
        RuntimeError: from the wait, if one of them fails.
    """
    folder = Path(config.train.storage, config.train.name)
    folder.mkdir(parents=True)
    processes = [
        get_context("fork").Process(target=_train, args=(config, rank, recorder))
        for rank in range(config.train.workers)
    ]
    for process in processes:
        process.start()

    def wait() -> Path:
        for process in processes:
            process.join(_START_LIMIT_S)
            process.kill()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"the undisturbed run failed: {[each.exitcode for each in processes]}")
        return max(folder.glob("step_*"))

    return wait


def _train(config: Config, rank: int, recorder: Recorder) -> None:
    import torch
    import torch.distributed as dist

    from capsdist.train.loop import run_training

    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    folder, world_size = Path(config.train.storage, config.train.name), config.train.workers
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=world_size)

    def save(write: Callable[[Path], None], step: int, metrics: dict[str, float]) -> None:
        write(folder / f"step_{step:08d}")

    run_training(
        config,
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        events=lambda row: None,
        save=save,
        observe=lambda step, sample_ids: recorder(rank, step, sample_ids),
    )
