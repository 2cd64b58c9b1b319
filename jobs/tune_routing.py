"""Search over routing depth and capsule capacity with Ray Tune; every trial is a distributed training run.

Command: python jobs/tune_routing.py --space.iterations 1 2 3 5 --space.class-dim 8 16 32
Expected time: that of the trials' training, and 10 to 20 s each, divided by the trials at a time.
Expected error_percent: not above that of the preset, if its values are in the space.
"""

from __future__ import annotations

import sys
from pathlib import Path

from capsdist.cli.tune import tune
from capsdist.console import run_program

RECORDS = Path(__file__).resolve().parent / "records"

if __name__ == "__main__":
    sys.exit(run_program(lambda: tune(__doc__, sys.argv[1:], RECORDS)))
