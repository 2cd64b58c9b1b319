"""Train a capsule network on MultiMNIST: two overlaid digits an image, both to be named.

Source: "Dynamic Routing Between Capsules" (2017), section 6 and Table 1. multimnist_paper (the default) is
the row r=3 with reconstruction; --routing.iterations 1 and --model.no-decoder make the other rows.
multimnist_official is the authors' released code, with shifts up to 6 pixels as in its README.
Command: python data_prep/pack_multimnist.py && python jobs/train_multimnist.py
multimnist_official: python data_prep/pack_multimnist.py --shift 6 --name multimnist_shift6
A hundredth of all pairs: python data_prep/pack_multimnist.py --partners 10 --name multimnist_small, then
    python jobs/train_multimnist.py --data.name multimnist_small
Expected time: not measured; an epoch is 468,750 steps, and the test has 10,000,000 images.
Expected error_percent (one wrong label makes an image wrong): paper 5.2, with r=1 7.5, multimnist_baseline
8.1; without reconstruction the paper has no figure. Not measured here.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = ("multimnist_paper", "multimnist_official", "multimnist_baseline")

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
