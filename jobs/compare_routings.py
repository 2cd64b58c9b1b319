"""Compare all routing algorithms, and controls, at equal parameters on 4,000 digits, with paired seeds.

Source: the papers of each (capsdist/routing); the controls are uniform coupling and fully connected layers.
The runs are a grid that goes on where it was stopped. `--mnist FOLDER` also tests on MNIST's own test images,
those among the embedded digits left out.
Command: python data_prep/pack_digits.py && python jobs/compare_routings.py
Expected time: 19 minutes on 2 CPU cores (AMD EPYC) with --mnist; --smoke needs no data.
Expected error_percent (means): 4 to 5 fully connected, 5 to 7 most routings, 8 to 9 Heinsen's (jobs/records).
"""

from __future__ import annotations

import sys
from pathlib import Path

from capsdist.cli.compare_routings import compare_routings
from capsdist.console import run_program

RECORDS = Path(__file__).resolve().parent / "records"

if __name__ == "__main__":
    sys.exit(run_program(lambda: compare_routings(__doc__, sys.argv[1:], RECORDS)))
