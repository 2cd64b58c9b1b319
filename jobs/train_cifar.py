"""Train a capsule network on CIFAR-10 or CIFAR-100.

Source: "Dynamic Routing Between Capsules" (2017), section 7, and the authors' released code: cifar10_official
(the default) is that code with its augmentation, cifar10_paper one member of the paper's ensemble of 7.
cifar10_resnet_capsnet and cifar100_resnet_capsnet have a residual network under the capsules, are from no
publication, and hold out images to validate on: capsdist pack cifar100 --validation 0.1
Command: python data_prep/pack_cifar10.py && python jobs/train_cifar.py
Expected time: not measured; a GPU is needed for the 600,000 steps of the official training.
Expected error_percent: paper 10.6 for the ensemble of 7, not measured here.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = (
    "cifar10_official",
    "cifar10_paper",
    "cifar10_resnet_capsnet",
    "cifar10_resnet_capsnet_cpu",
    "cifar100_resnet_capsnet",
)

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
