"""Runs as they lie on storage, made up: metrics, a checkpoint of an untrained network, test images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from capsdist.config import Config
from capsdist.data import write_split
from capsdist.models import build_model
from capsdist.train.checkpoint import Checkpoint, EngineState, write_checkpoint

__all__ = ["TINY", "make_run", "rows_of"]

TINY: dict[str, Any] = {
    "image_size": 9, "conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_dim": 3,
    "primary_kernel": 3, "class_dim": 4, "num_classes": 4, "decoder_hidden": (5, 6),
}  # fmt: skip


def rows_of(num_classes: int, confusions: bool = True, best: float = 0.0) -> list[dict[str, Any]]:
    """Event rows of a made-up run of 40 steps."""
    table = (5 * np.eye(num_classes, dtype=int) + 1).tolist() if confusions else None
    rows: list[dict[str, Any]] = [
        {"kind": "start", "step": 0, "resumed_step": 0, "run": "made-up", "num_parameters": 8_215_568,
         "world_size": 2, "device": "cpu", "precision": "fp32"}
    ]  # fmt: skip
    for step in range(2, 41, 2):
        rows.append({"kind": "train", "step": step, "loss": 1 / step, "error_percent": 90 / step})
        if step % 20 == 0:
            rows.append({"kind": "validation", "step": step, "loss": 1.1 / step, "num_images": 6000,
                         "error_percent": best, "confusion": table})  # fmt: skip
    return rows


def make_run(folder: Path, config: Config, num: int = 40) -> Path:
    """A run directory with metrics and a checkpoint of an untrained network, and its packed test split."""
    generator = np.random.default_rng(len(str(folder)))
    side = config.model.image_size + (2 if config.data.crop else 0)
    images = generator.integers(0, 256, (num, config.model.in_channels, side, side), dtype=np.uint8)
    classes = [f"class {i}" for i in range(config.model.num_classes)]
    labels = np.arange(num) % len(classes)
    write_split(folder / "data/made/test", images, labels, classes=classes)
    run = folder / "runs/made-up"
    run.mkdir(parents=True)
    network = build_model(config.model, config.routing)
    state = EngineState(model=network.state_dict(), optimizer={})
    write_checkpoint(run / "step_00000040", Checkpoint(state, step=40, epoch=1, position={}, config=config))
    text = "\n".join(map(json.dumps, rows_of(len(classes))))
    (run / "metrics.jsonl").write_text(text + "\n")
    return run
