"""Say which class a trained network sees in image files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from capsdist.console import DONE, announced, print_error
from capsdist.errors import CapsdistError

__all__ = ["predict"]


def predict(
    run: Annotated[str, tyro.conf.Positional],
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    best: bool = False,
    device: Literal["auto", "cpu", "gpu"] = "auto",
) -> int:
    """Print a line per image file: its path, the class, and the score of the class.

    Of a network for K labels an image: the K classes of the largest scores, joined by "+", and their scores.
    The exit status is 1 if a file could not be read; the others are predicted.

    Args:
        run: Path or s3:// URL of a run, or of a checkpoint.
        files: Image files: PNG, JPEG and others that Pillow reads.
        best: Of a run, the checkpoint with the lowest validated error_percent, not the newest.
        device: auto: the GPU if there is one.
    """
    with announced(lambda text: print(text, file=sys.stderr), f"reading {run}"):  # and importing torch
        from capsdist.inference import load

        network = load(run, best=best, device=device, log=lambda text: print(text, file=sys.stderr))
    status = DONE
    for path in files:  # one by one: any number of them fits into memory, and a bad one stops no other
        try:
            found = network.predict(path)
        except CapsdistError as error:
            status = print_error(error)
            continue
        scores = ", ".join(f"{score:.3f}" for score in found.scores[0][found.labels[0].view(-1)])
        print(f"{path}: {found.names[0]} ({scores})")
    return status
