"""Runs of seconds on a few digits, which show that figures can be drawn, and nothing else.

The networks are small and see a few batches, in this process, without Ray.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from capsdist.config import CapsNetConfig, Config, Data, Optim, Train
from capsdist.config.models import Routing
from capsdist.console import Log
from capsdist.data.sets.few import pack_few
from capsdist.data.sets.spec import TRAIN_TEST
from capsdist.runs.files import open_files
from capsdist.runs.record import open_record
from capsdist.runs.retention import checkpoint_name
from capsdist.runs.rundir import run_place
from capsdist.train.loop import run_training

__all__ = ["smoke_runs"]

_STEPS, _CHECKPOINT_EVERY = 24, 8


def smoke_runs(root: Path, packed: str, log: Log = print) -> tuple[tuple[str, ...], str]:
    """Train three runs below `root`; return their folders and a note on them.

    Digits with r = 1 and 3, and pairs of digits: the first of MNIST in the folder `packed`, or where it is
    not packed, made-up ones in files of the original format. Needs neither Ray nor the internet.
    """
    for name in ("mnist", "multimnist"):
        words = pack_few(name, TRAIN_TEST, packed, str(root / "data"))
        log(f"smoke: packed {words}")
    runs = [_trained(root, "mnist", f"smoke-digits-r{iterations}", iterations, log) for iterations in (1, 3)]
    pairs = {"num_labels": 2, "image_size": 36, "decoder_separate": True}
    runs.append(_trained(root, "multimnist", "smoke-pairs", 3, log, **pairs))
    return tuple(runs), f"Smoke: a tiny network after a few steps on few digits, {words}; no result."


def _trained(root: Path, data: str, name: str, iterations: int, log: Log, **changes: Any) -> str:
    """Train the run `name` on the set `data`; return its folder."""
    config = Config(
        model=CapsNetConfig(conv_channels=8, primary_types=4, decoder_hidden=(64, 128), **changes),
        routing=Routing(iterations=iterations),
        data=Data(name=data, root=str(root / "data"), validation_split=None, shift=0),
        optim=Optim(learning_rate=0.005),
        train=Train(
            name=name, storage=str(root / "runs"), max_steps=_STEPS, global_batch_size=16, precision="fp32",
            log_every_steps=2, checkpoint_every_steps=_CHECKPOINT_EVERY, loggers=("jsonl",), device="cpu",
        ),
    )  # fmt: skip
    files = open_files(run_place(config))
    log(f"training {files}: {_STEPS} steps")
    assert files.local is not None
    folder = files.local

    def save(write: Any, step: int, metrics: dict[str, float]) -> str:
        write(folder / checkpoint_name(step))
        return checkpoint_name(step)

    with open_record(files, config, log) as record:
        place = {"rank": 0, "world_size": 1, "device": torch.device("cpu")}
        run_training(config, events=record, save=save, **place)
    return str(files)
