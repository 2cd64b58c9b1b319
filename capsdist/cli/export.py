"""Write a trained network in a format that other programs read."""

from __future__ import annotations

from typing import Annotated

import tyro

from capsdist.console import DONE, announced, log

__all__ = ["export"]


def export(
    run: Annotated[str, tyro.conf.Positional],
    to: str,
    output: str,
    best: bool = False,
    image_size: tuple[int, int] | None = None,
    split: str | None = None,
) -> int:
    """Export a network; the files are compared with capsdist's own prediction before they are left.

    Args:
        run: Path or s3:// URL of a run, or of a checkpoint.
        to: safetensors: weights and configuration; hub: these with a model card, as model hubs expect;
            torch-export, onnx: classifier and decoder as programs, preprocessing included. Or the import path
            package.module:OBJECT of a format.
        output: Path or s3:// URL of the folder to make.
        best: Of a run, the checkpoint with the lowest validated error_percent, not the newest.
        image_size: Height and width of the images that programs take; needed where the network crops or
            resizes them.
        split: With hub, the packed split on which the error of the model card is measured; default: what
            the run has measured.
    """
    with announced(log, f"exporting {run}"):
        from capsdist.export import export_run

        done = export_run(run, to, output, best=best, image_size=image_size or 0, split=split, log=log)
    print(f"{done.source}: exported to {output}")
    for name, size in done.files.items():
        print(f"  {name}  {size:,} bytes")
    print(f"largest difference from capsdist's own outputs: {done.difference:.1e}")
    return DONE
