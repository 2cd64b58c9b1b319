"""Measure the error of a checkpoint on a packed split."""

from __future__ import annotations

import contextlib
from typing import Annotated, Literal

import tyro

from capsdist.console import DONE, announced, log

__all__ = ["evaluate"]


def evaluate(
    checkpoint: Annotated[str, tyro.conf.Positional],
    split: str | None = None,
    best: bool = False,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    batch_size: int = 128,
) -> int:
    """Measure the error of a checkpoint on a packed split; the last line is `error_percent X`.

    Args:
        checkpoint: Path or s3:// URL of a checkpoint, or of a run: its newest verified checkpoint.
        split: Path or s3:// URL of the split; default: the test split of the run.
        best: Of a run, the checkpoint with the lowest validated error_percent.
        device: auto: the GPU if there is one.
        batch_size: Images at a time.
    """
    with contextlib.ExitStack() as stack:
        with announced(log, f"reading {checkpoint}"):  # and importing torch, which takes seconds
            from capsdist.runs.checkpoints import opened_checkpoint
            from capsdist.train.evaluate import evaluate_checkpoint

            opened = opened_checkpoint(checkpoint, lowest_error=best, log=log)
            name, folder = stack.enter_context(opened)
        options = {"device": device, "batch_size": batch_size, "log": log}
        config, result = evaluate_checkpoint(folder, split, **options)
    print(f"{name}: {config.model.kind} of preset {config.preset}, run {config.train.name}")
    for label, row in enumerate(result.get("confusion", [])):
        error = 100 - 100 * row[label] / max(sum(row), 1)
        print(f"  class {label}: {sum(row):,} images, error_percent {error:.2f}")
    if "label_error_percent" in result:
        print(f"label_error_percent {result['label_error_percent']:.2f}")
    print(f"error_percent {result['error_percent']:.2f}  ({result['num_images']:,} images)")
    return DONE
