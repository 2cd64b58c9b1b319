"""Train Table 1 of the paper: baseline, r = 1 and 3, with and without reconstruction; MNIST, MultiMNIST.

Source: Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (2017), Table 1; the cells that it leaves
blank included. The runs are the cells of a grid: side by side as far as the cluster goes, and a table that
was stopped goes on with the missing ones. Options of a run (--train.epochs 1) are laid over all of them.
Command: python jobs/table1.py --size quarter --columns mnist --ablations --train.epochs 1
Needs data: python data_prep/pack_mnist.py, python data_prep/pack_multimnist.py; --smoke does without.
Expected time: that of the trainings, and 10 to 20 s each, divided by the cells at a time; not measured.
Expected error_percent: the paper's, printed beside what was found; not measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

from capsdist.cli.table1 import table1
from capsdist.console import run_program

RECORDS = Path(__file__).resolve().parent / "records"

if __name__ == "__main__":
    sys.exit(run_program(lambda: table1(__doc__, sys.argv[1:], RECORDS)))
