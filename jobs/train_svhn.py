"""Train a small capsule network on SVHN, house numbers in colour.

Source: "Dynamic Routing Between Capsules" (2017), section 7: 73,257 images, without the split `extra`.
Command: python data_prep/pack_svhn.py && python jobs/train_svhn.py
Expected time: not measured.
Expected error_percent: paper 4.3, not measured here.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = ("svhn_paper",)

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
