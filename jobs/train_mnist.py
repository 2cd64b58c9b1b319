"""Train a capsule network on MNIST digits.

Source: Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (2017), section 5 and Table 1.
Command: python data_prep/pack_mnist.py && python jobs/train_mnist.py
4,000 digits: python data_prep/pack_digits.py && python jobs/train_mnist.py --preset digits_quickstart
Expected time: mnist_paper not measured; digits_quickstart a few minutes on 2 CPU cores.
Expected error_percent: paper 0.25 after long training (0.39 for the baseline), not measured here.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = ("mnist_paper", "mnist_official", "mnist_baseline", "digits_quickstart")

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
