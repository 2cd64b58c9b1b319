"""Runs of seconds on made-up digits, which show that figures can be drawn, and nothing else.

The digits are printed ones, turned and shifted, written as idx files, the format of MNIST's originals, and
read back as those are. The networks are small and see a few batches, in this process, without Ray.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capsdist.config import CapsNetConfig, Config, Data, Optim, Train
from capsdist.config.models import Routing
from capsdist.console import Log
from capsdist.data import write_split
from capsdist.data.recipes.source import recipes_over, write_recipes
from capsdist.data.sets.idx import FILES, load_idx_set
from capsdist.runs.files import open_files
from capsdist.runs.record import open_record
from capsdist.runs.retention import checkpoint_name
from capsdist.runs.rundir import run_place
from capsdist.train.loop import run_training

__all__ = ["NOTE", "smoke_runs"]

NOTE = "Smoke: a tiny network after a few steps on made-up digits; no result."
_COUNTS = {"train": 320, "test": 100}
_STEPS, _CHECKPOINT_EVERY = 24, 8
_SET = "made-up-digits"


def smoke_runs(root: Path, log: Log = print) -> list[str]:
    """Train three runs below `root` and return their folders: digits with r = 1 and 3, and pairs of digits.

    Deterministic. Needs neither Ray nor the internet.
    """
    log(f"making printed digits as idx files in {root / 'originals'}, and overlaying pairs of them")
    _pack(_write_originals(root / "originals"), root / "data")
    return [
        _trained(root, f"smoke-digits-r{iterations}", iterations, log, train_split="digits_train",
                 test_split="digits_test")
        for iterations in (1, 3)
    ] + [_trained(root, "smoke-pairs", 3, log, num_labels=2, image_size=36)]  # fmt: skip


def _write_originals(folder: Path) -> dict[str, str]:
    """Write the four files of a set like MNIST; return their checksums by name."""
    folder.mkdir(parents=True)
    checksums = {}
    for split, names in FILES.items():
        labels = np.arange(_COUNTS[split], dtype=np.uint8) % 10
        for name, array in zip(names, (_digits(labels), labels), strict=True):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            content = header + array.tobytes()
            (folder / name).write_bytes(content)
            checksums[name] = hashlib.sha256(content).hexdigest()
    return checksums


def _digits(labels: np.ndarray) -> np.ndarray:
    """Return printed digits, uint8 [N, 28, 28], of different sizes, turned and shifted at random."""
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(len(labels))
    images = np.empty((len(labels), 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        drawn = Image.new("L", (28, 28))
        across, down = rng.uniform(12, 16, 2)
        font = ImageFont.load_default(size=rng.uniform(18, 26))
        ImageDraw.Draw(drawn).text((across, down), str(label), fill=255, font=font, anchor="mm")
        image[:] = np.asarray(drawn.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR))
    return images


def _pack(checksums: dict[str, str], root: Path) -> None:
    """Pack the originals beside `root`, and recipes for pairs of them."""
    classes = tuple("0123456789")
    for split, (images, labels) in load_idx_set(root.parent / "originals", checksums).items():
        digits = f"digits_{split}"
        write_split(root / _SET / digits, images, labels, classes=classes, licence="made up")
        recipes = recipes_over(root / _SET, digits, partners=2, pad=4, shift=4)
        write_recipes(root / _SET / split, recipes)


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
