"""Test claims about capsule networks: against a CNN of as many parameters, with intervals over seeds.

Source: Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (2017), and lectures on it: less data,
transformed digits, viewpoints, scrambled parts, crowding, equivariance, noise, attacks (capsdist/claims).
Command: python data_prep/pack_mnist.py && python jobs/claims.py --size mini --images 10000
Expected time and verdicts: not measured.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import tyro

from capsdist.claims.report import record_study, write_study
from capsdist.claims.settings import Settings, SizeName
from capsdist.claims.smoke import smoke_settings
from capsdist.claims.study import run_study
from capsdist.cli.job import with_environment
from capsdist.config import Config
from capsdist.console import DONE, STOPPED, log, run_program

PLACES = with_environment(Config())


def main(
    size: SizeName = "mini", seeds: tuple[int, ...] = (0, 1, 2), fractions: tuple[float, ...] = (1, 10, 100),
    epochs: float = 5, images: int | None = None, test_images: int = 2000, data: str = "mnist",
    root: str = PLACES.data.root, storage: str = PLACES.train.storage, name: str = "claims",
    to: str = "claims", record: bool = False, smoke: bool = False,
) -> int:  # fmt: skip
    """Test claims about capsule networks; the same command goes on where it was stopped.

    Args:
        size: Of the capsule network: 64, 128 or 256 channels, 8, 16 or 32 types of primary capsules.
        seeds: Of initialisation, order and choice of images; two or more for intervals.
        fractions: Parts of the training images, percent; the networks of the largest serve all experiments.
        epochs: Passes over the largest part; networks of smaller parts take as many steps.
        images: Training images of which the fractions are; default: all.
        test_images: The first so many test images are transformed, disturbed and arranged.
        data: Packed set of 28x28 grey images in 10 classes.
        root: Place of the packed sets; parts of the training split are written beside it.
        storage: Place of the runs.
        name: First part of the names of the runs.
        to: Folder or s3:// URL for claims.json, claims.md and the figures.
        record: Write a record below jobs/records.
        smoke: Tiny networks, a few steps, 400 images; runs and images do not stay.
    """
    settings = Settings(size, seeds, fractions, epochs, images, test_images, data, root, storage, name)
    note = ""
    with tempfile.TemporaryDirectory() as scratch:
        if smoke:
            settings, note = smoke_settings(settings, Path(scratch))
        study = run_study(settings, log, note=note)
    if study is None:
        return STOPPED
    print("\n".join([*write_study(study, to), *study.sentences]))
    if record:
        print("recorded in", record_study(study, Path(__file__).parent / "records"))
    return DONE


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main)))
