"""Train a capsule network on MNIST digits.

Source: Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (2017), section 5 and Table 1. mnist_paper
(the default) is the row r=3 with reconstruction; --routing.iterations 1 and --model.no-decoder make the other
rows. mnist_ablation_DIFFERENCE is mnist_paper with one difference of the authors' code, mnist_official.
Command: python data_prep/pack_mnist.py && python jobs/train_mnist.py
3,600 digits: python data_prep/pack_digits.py && python jobs/train_mnist.py --preset digits_quickstart
digits_conv and digits_deep have two and four layers of capsules, convolutional below the class capsules.
Expected time: digits_quickstart 4 minutes on 2 CPU cores, mnist_paper's 50 epochs not measured.
Expected error_percent: digits_quickstart 2.0, mnist_paper 1.2 after one epoch (records); whole training, of
which the paper has 0.25 (r=1 0.29, without reconstruction 0.35 and 0.34) and 0.39 for the baseline: not
measured.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job
from capsdist.config.presets.mnist_ablation import ABLATIONS

PRESETS = (
    "mnist_paper", "mnist_official", "mnist_baseline", "digits_quickstart", "digits_em", "digits_conv",
    "digits_deep", "digits_stack", "digits_attention", "digits_inverted", "digits_heinsen",
    "digits_grouped", *ABLATIONS,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
