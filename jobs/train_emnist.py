"""Train the MNIST capsule network on EMNIST: 26 letters, or 47 digits and letters.

Source: network and training of "Dynamic Routing Between Capsules" (2017), which has no figure for this set.
Command: python data_prep/pack_emnist_letters.py && python jobs/train_emnist.py
All characters: python data_prep/pack_emnist_balanced.py, then
    python jobs/train_emnist.py --preset emnist_balanced_paper
Expected time and error_percent: not measured.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = ("emnist_letters_paper", "emnist_balanced_paper")

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
