"""A run of seconds: a network of 4,000 parameters on random images, as tests and fault campaigns need it.

What is asked of it is not what it learns but that nothing is lost: shapes are odd, the last step of an epoch
is short, and checkpoints fall into the middle of epochs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from capsdist.config import CapsNetConfig, Config, Data, Launch, Train
from capsdist.data import write_split
from capsdist.storage import join
from limits import PATIENCE_S

if TYPE_CHECKING:
    from faults.lineage import Recorder

__all__ = [
    "BATCH", "CAMPAIGN_EPOCHS", "CHECKPOINT_EVERY", "NUM_TEST", "NUM_TRAIN", "STEPS_PER_EPOCH", "WORKERS",
    "campaign_config", "run_undisturbed", "tiny_config", "write_tiny",
]  # fmt: skip

NUM_TRAIN, NUM_TEST, BATCH = 92, 23, 12
STEPS_PER_EPOCH = 8
"""The last one short."""
CAMPAIGN_EPOCHS, CHECKPOINT_EVERY, WORKERS = 8, 5, 2
STEP_TIMEOUT_S = 30.0
"""Of a campaign's runs: a thousand times what a step takes, and what a frozen worker costs."""


def write_tiny(
    root: Path | str,
    *,
    name: str = "tiny",
    shape: tuple[int, int, int] = (1, 12, 12),
    num_train: int = NUM_TRAIN,
    num_test: int = NUM_TEST,
) -> None:
    """Write random images as the data set `name`, all 10 classes in turn, in several shards."""
    rng = np.random.default_rng(num_train)
    for split, num in (("train", num_train), ("test", num_test)):
        images = rng.integers(0, 256, (num, *shape), dtype=np.uint8)
        classes = [f"class {number}" for number in range(10)]
        labels = np.arange(num) % 10
        write_split(join(root, name, split), images, labels, classes=classes, block_size=16, shard_size=48)


def tiny_config(
    root: Path | str,
    storage: Path | str,
    name: str,
    *,
    launch: Launch | None = None,
    cores: float = 1,
    **train: object,
) -> Config:
    """Return the configuration of a run on `write_tiny(root)`: 2 workers of `cores`, 2 epochs, DDP, fp32.

    cluster, train: its section, and fields of that one.
    """
    settings = {
        "name": name, "storage": str(storage), "num_workers": WORKERS, "device": "cpu", "epochs": 2,
        "global_batch_size": BATCH, "precision": "fp32", "checkpoint_every_steps": 3, "log_every_steps": 3,
    }  # fmt: skip
    return Config(
        model=CapsNetConfig(
            image_size=12, conv_channels=4, conv_kernel=3, primary_kernel=3, primary_types=2, primary_dim=4,
            class_dim=4, decoder_hidden=(8, 9),
        ),
        data=Data(name="tiny", root=str(root), lanes=4, window=16),
        train=Train.model_validate(settings | train),
        launch=launch or Launch(cpus_per_worker=cores),
    )  # fmt: skip


def campaign_config(
    root: Path, storage: Path, name: str, *, max_failures: int = 0, engine: str = "ddp"
) -> Config:
    """Return the configuration of a campaign's run on `write_tiny(root)`: 64 steps, checkpoints every 5."""
    return tiny_config(
        root,
        storage,
        name,
        launch=Launch(cpus_per_worker=1, max_failures=max_failures, step_timeout_s=STEP_TIMEOUT_S),
        engine=engine,
        keep_checkpoints=3,
        epochs=CAMPAIGN_EPOCHS,
        checkpoint_every_steps=CHECKPOINT_EVERY,
    )


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
        for rank in range(config.train.num_workers)
    ]
    for process in processes:
        process.start()

    def wait() -> Path:
        for process in processes:
            process.join(PATIENCE_S)
            process.kill()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"the undisturbed run failed: {[each.exitcode for each in processes]}")
        return max(folder.glob("step_*"))

    return wait


def _train(config: Config, rank: int, recorder: Recorder) -> None:
    import torch
    import torch.distributed as dist

    from capsdist.train.engine.interfaces import on_loopback
    from capsdist.train.loop import run_training

    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    folder, world_size = Path(config.train.storage, config.train.name), config.train.num_workers
    with on_loopback():
        dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=world_size)

    def save(write: Callable[[Path | None], None], step: int, metrics: dict[str, float]) -> None:
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
