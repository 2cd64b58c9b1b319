"""Train stacks of 1, 2, 4 and 6 capsule layers on digits, with and without remedies; say where they fail.

Source: none, a question of ours: how deep capsule networks can be. Layers below the class capsules are
convolutional, of equal size; remedies are those of the family conv_capsnet. A depth fails with an error above
50 %, or if a layer has fewer than 10 % live capsules (`capsdist doctor`). The runs are the cells of a grid: a
curve that was stopped goes on with the missing ones. Options of a run (--train.epochs 1) are laid over all.
Command: python data_prep/pack_digits.py && python jobs/depth_curve.py
Expected time: 51 minutes on 2 CPU cores (AMD EPYC) beside other work, 23 short trainings.
Expected error_percent: 4 to 5 with one layer, above 50 with six and no remedy (jobs/records/README.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

from capsdist.cli.depth_curve import depth_curve
from capsdist.console import run_program

RECORDS = Path(__file__).resolve().parent / "records"

if __name__ == "__main__":
    sys.exit(run_program(lambda: depth_curve(__doc__, "digits_stack", sys.argv[1:], RECORDS)))
