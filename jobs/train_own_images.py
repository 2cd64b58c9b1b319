"""Train a small capsule network on images of your own, of any size and number of classes.

Source: the network of "Dynamic Routing Between Capsules" (2017) with fewer channels.
Command: capsdist pack folder PHOTOS --name mine && python jobs/train_own_images.py --data.name mine
Expected time and error_percent: those of your images.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = ("capsnet_small",)

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
