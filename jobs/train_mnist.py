"""Train a capsule network on MNIST digits.

Source: Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (2017), section 5 and Table 1.
Command: python data_prep/pack_mnist.py && python jobs/train_mnist.py
3,600 digits: python data_prep/pack_digits.py && python jobs/train_mnist.py --preset digits_quickstart
Expected time: digits_quickstart 4 minutes on 2 CPU cores, mnist_paper's 50 epochs not measured.
Expected error_percent: digits_quickstart 2.0, mnist_paper 1.2 after one epoch (records); whole training, of
which the paper has 0.25 and 0.39 for the baseline: not measured.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = ("mnist_paper", "mnist_official", "mnist_baseline", "digits_quickstart")

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
