"""Draw the figures of the paper of runs or checkpoints: 3, 4, 5, A.1, A.2, reconstructions, coupling.

Source: Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (2017).
Command: python jobs/figures.py runs/mnist-r3 runs/mnist-r1 --to figures
Figure 5 needs a run on multimnist; A.1 has a point for every checkpoint that a run has kept: train with
--train.keep-checkpoints 1000.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

from capsdist.analysis.figures import Name, draw_figures
from capsdist.analysis.smoke import smoke_runs
from capsdist.cli.job import with_environment
from capsdist.config import Config
from capsdist.console import log, run_program
from capsdist.errors import ConfigError, Problem


def main(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    to: str = "figures",
    only: tuple[Name, ...] = (),
    split: str | None = None,
    best: bool = False,
    num_images: int = 10,
    smoke: bool = False,
) -> int:
    """Draw figures of trained networks: each as PNG and SVG, with its numbers as JSON beside it.

    Args:
        runs: Paths or s3:// URLs of runs or checkpoints; of a run the newest verified checkpoint.
        to: Path or s3:// URL of the folder for the figures.
        only: Figures to draw; default: all that the networks and their images allow.
        split: Path or s3:// URL of the split to take images from; default: the test split of each run.
        best: Of a run, the checkpoint with the lowest validated error_percent.
        num_images: Images of a figure, where it is not the paper that decides.
        smoke: Draw them of tiny networks, trained for a few steps on few digits, in place of runs.
    """
    if smoke and runs:
        rule = "stand beside --smoke, which makes its own"
        raise ConfigError([Problem("runs", runs, rule, "leave one out")])
    options = {"only": only, "split": split, "best": best, "num_images": num_images, "log": log}
    with tempfile.TemporaryDirectory() as folder:
        note = ""
        if smoke:
            runs, note = smoke_runs(Path(folder), with_environment(Config()).data.root, log)
        for path in draw_figures(runs, to, note=note, **options):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main)))
