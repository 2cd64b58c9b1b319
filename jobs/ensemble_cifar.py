"""Train an ensemble of 7 capsule networks on CIFAR-10, or take checkpoints, and sum their class scores.

Source: Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (2017), section 7. The members differ in
their seeds and are the cells of a grid, as the runs of jobs/table1.py.
Command: python data_prep/pack_cifar10.py && python jobs/ensemble_cifar.py
    python jobs/ensemble_cifar.py --checkpoints runs/a runs/b runs/c
Expected time: 7 trainings of cifar10_paper; not measured. --smoke needs no data.
Expected error_percent: 10.6 with 7 members (paper); not measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

from capsdist.cli.ensemble import ensemble
from capsdist.console import run_program

PRESETS = ("cifar10_paper", "cifar10_official")
RECORDS = Path(__file__).resolve().parent / "records"

if __name__ == "__main__":
    sys.exit(run_program(lambda: ensemble(__doc__, PRESETS, sys.argv[1:], RECORDS)))
