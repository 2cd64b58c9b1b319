"""Runs of seconds on printed digits, which show that figures can be drawn, and nothing else.

The networks are small and see a few batches, in this process, without Ray.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from capsdist.config import CapsNetConfig, Config, Data, Optim, Train
from capsdist.config.models import Routing
from capsdist.console import Log
from capsdist.data import write_split
from capsdist.data.recipes.source import recipes_over, write_recipes
from capsdist.data.sets.printed import printed_digits
from capsdist.runs.files import open_files
from capsdist.runs.record import open_record
from capsdist.runs.retention import checkpoint_name
from capsdist.runs.rundir import run_place
from capsdist.train.loop import run_training

__all__ = ["NOTE", "smoke_runs"]

NOTE = "Smoke: a tiny network after a few steps on printed digits; no result."
_COUNTS = {"train": 320, "test": 100}
_STEPS, _CHECKPOINT_EVERY = 24, 8
_SET = "printed-digits"


def smoke_runs(root: Path, log: Log = print) -> list[str]:
    """Train three runs below `root` and return their folders: digits with r = 1 and 3, and pairs of digits.

    Deterministic. Needs neither Ray nor the internet.
    """
    log("printing digits into idx files, the format of MNIST's originals, and overlaying pairs of them")
    _pack(root / "data")
    return [
        _trained(root, f"smoke-digits-r{iterations}", iterations, log, train_split="digits_train",
                 test_split="digits_test")
        for iterations in (1, 3)
    ] + [
        _trained(root, "smoke-pairs", 3, log, num_labels=2, image_size=36, decoder_separate=True)
    ]  # fmt: skip


def _pack(root: Path) -> None:
    """Pack printed digits below `root`, and recipes for pairs of them."""
    for split, num in _COUNTS.items():
        digits = f"digits_{split}"
        write_split(
            root / _SET / digits, *printed_digits(num), classes=tuple("0123456789"), licence="made up"
        )
        write_recipes(root / _SET / split, recipes_over(root / _SET, digits, partners=2, pad=4, shift=4))


def _trained(root: Path, name: str, iterations: int, log: Log, **changes: Any) -> str:
    """Train the run `name`; return its folder."""
    splits = {key: changes.pop(key) for key in ("train_split", "test_split") if key in changes}
    config = Config(
        model=CapsNetConfig(conv_channels=8, primary_types=4, decoder_hidden=(64, 128), **changes),
        routing=Routing(iterations=iterations),
        data=Data(name=_SET, root=str(root / "data"), validation_split=None, shift=0, **splits),
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
