"""Train a network for affNIST: on MNIST at all positions in 40x40, tested on affine transformations.

Source: "Dynamic Routing Between Capsules" (2017), section 5.2. Training stops once 99.23 % (the CNN: 99.22 %)
of translated digits held out for validation are right; then the run is tested on affNIST, if it is packed,
and on affnist_like, a set GENERATED like it. affnist_baseline is a CNN of ours with as many parameters.
Command: python data_prep/pack_affnist_train.py --validation 0.1 --no-whole
    python data_prep/pack_affnist.py || python data_prep/pack_affnist_like.py
    python jobs/train_affnist.py
Expected time: not measured; at most an epoch of about 71,300 steps. --smoke needs no data.
Expected error_percent on affNIST: paper 21 (79 % right), the CNN 34 (66 % right), not measured here.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = ("affnist_paper", "affnist_official", "affnist_baseline")

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
