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
from typing import Annotated

import tyro

from capsdist.claims.report import record_study, write_study
from capsdist.claims.settings import Settings
from capsdist.claims.smoke import smoke_settings
from capsdist.claims.study import run_study
from capsdist.cli.job import with_environment
from capsdist.config import Config
from capsdist.console import DONE, STOPPED, log, run_program

PLACES = with_environment(Config())
SETTINGS = Settings(root=PLACES.data.root, storage=PLACES.train.storage)


def main(
    settings: Annotated[Settings, tyro.conf.arg(name="")] = SETTINGS,
    to: str = "claims",
    record: bool = False,
    smoke: bool = False,
) -> int:
    """Test claims about capsule networks; the same command goes on where it was stopped.

    Args:
        settings: What they are tested with.
        to: Folder or s3:// URL for claims.json, claims.md and the figures.
        record: Write a record below jobs/records.
        smoke: Tiny networks, a few steps, 400 images; runs and images do not stay.
    """
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
