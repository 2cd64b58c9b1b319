"""Train capsules over a residual network on ImageNet, Tiny-ImageNet or Imagenette.

Source: the layers of "Dynamic Routing Between Capsules" (2017) over a residual stem; no published figures.
With 200 to 1,000 classes the loss of absent classes is scaled, see loss.absent_scaling.
Command: python data_prep/pack_tiny_imagenet.py --validation 0.1 && python jobs/train_imagenet.py
Expected time: not measured; a GPU is needed, several for the 803 M weights of imagenet_resnet_capsnet.
Expected error_percent: of whole trainings not measured; of 300 steps on two cores see jobs/records/README.md.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = (
    "tiny_imagenet_resnet_capsnet",
    "imagenette_resnet_capsnet",
    "imagenet_resnet_capsnet",
    "imagenet_resnet_capsnet_small",
)

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
