"""Say which class a trained network sees in image files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from capsdist.console import DONE, announced

__all__ = ["predict"]


def predict(
    run: Annotated[str, tyro.conf.Positional],
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    best: bool = False,
    device: Literal["auto", "cpu", "gpu"] = "auto",
) -> int:
    """Print a line per image file: its path, the class, and the score of the class.

    Of a network for K labels an image: the K classes of the largest scores, joined by "+", and their scores.

    Args:
        run: Path or s3:// URL of a run, or of a checkpoint.
        files: Image files: PNG, JPEG and others that Pillow reads.
        best: Of a run, the checkpoint with the lowest validated error_percent, not the newest.
        device: auto: the GPU if there is one.
    """
    with announced(lambda text: print(text, file=sys.stderr), f"reading {run}"):  # and importing torch
        from capsdist.inference import load

        network = load(run, best=best, device=device, log=lambda text: print(text, file=sys.stderr))
    found = network.predict(files)
    for path, name, classes, scores in zip(files, found.names, found.labels, found.scores, strict=True):
        of_classes = ", ".join(f"{score:.3f}" for score in scores[classes.view(-1)])
        print(f"{path}: {name} ({of_classes})")
    return DONE
