"""Train the MNIST capsule network on Fashion-MNIST.

Source: network and training of "Dynamic Routing Between Capsules" (2017), which has no figure for this set.
Command: python data_prep/pack_fashion_mnist.py && python jobs/train_fashion_mnist.py
Expected time and error_percent: not measured.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = ("fashion_mnist_paper",)

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
