"""Train a network for affNIST: on MNIST at all positions in 40x40, tested on affine transformations.

Source: "Dynamic Routing Between Capsules" (2017), section 5.2, where training stops once 99.23 % (the CNN:
99.22 %) of translated digits are right. affnist_baseline is a CNN of our choice with as many parameters.
Command: python data_prep/pack_affnist_train.py --validation 0.1 --no-whole && python jobs/train_affnist.py
The test on affNIST: python data_prep/pack_affnist.py
    python jobs/evaluate.py runs/affnist --split data/affnist/test
Expected time: not measured; an epoch is about 71,300 steps.
Expected error_percent on affNIST: paper 21 (79 % right), the CNN 34 (66 % right), not measured here.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = ("affnist_paper", "affnist_official", "affnist_baseline")

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
