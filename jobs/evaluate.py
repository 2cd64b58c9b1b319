"""Measure the error of a checkpoint on a packed split.

Command: python jobs/evaluate.py runs/quickstart (its newest checkpoint on its own test split), or
    python jobs/evaluate.py runs/quickstart/step_00000252 --split data/mnist/test
Needs neither Ray nor DeepSpeed. Expected time: under a minute for 10,000 digits on 2 CPU cores.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from capsdist.cli import print_error
from capsdist.errors import CapsdistError
from capsdist.train.cluster.rundir import RunFolder


def main(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    split: Path | None = None,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    batch_size: int = 128,
) -> int:
    """Measure the error of a checkpoint on a packed split; the last line is `error_percent X`.

    Args:
        checkpoint: Folder of a checkpoint, or of a run: its newest checkpoint.
        split: Folder of the split; default: the test split of the run.
        device: auto: the GPU if there is one.
        batch_size: Images at a time.
    """
    from capsdist.train.evaluate import evaluate_checkpoint

    folder = RunFolder(checkpoint).newest_checkpoint() or checkpoint
    try:
        config, result = evaluate_checkpoint(folder, split, device=device, batch_size=batch_size)
    except CapsdistError as error:
        return print_error(error)
    print(f"{folder}: {config.model.kind} of preset {config.preset}, run {config.train.name}")
    for label, row in enumerate(result["confusion"]):
        error = 100 - 100 * row[label] / max(sum(row), 1)
        print(f"  class {label}: {sum(row):,} images, error_percent {error:.2f}")
    print(f"error_percent {result['error_percent']:.2f}  ({result['num_images']:,} images)")
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
