"""Train a capsule network on CIFAR-10: 24x24 crops, 64 primary types, none-of-the-above routing.

Source: "Dynamic Routing Between Capsules" (2017), section 7, and the authors' released code: cifar10_official
(the default) is that code with its augmentation, cifar10_paper one member of the paper's ensemble of 7.
Command: python data_prep/pack_cifar10.py && python jobs/train_cifar.py
Expected time: not measured; a GPU is needed for the 600,000 steps of the official training.
Expected error_percent: paper 10.6 for the ensemble of 7, not measured here.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = ("cifar10_official", "cifar10_paper")

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
