"""Train a transforming auto-encoder: capsules that learn where they see what, from images and shifted ones.

Source: Hinton, Krizhevsky, Wang, "Transforming Auto-encoders" (2011), section 2.
digits_transforming_autoencoder (the default) trains on 4,000 real digits, mnist_transforming_autoencoder on
MNIST.
Command: python data_prep/pack_digits.py && python jobs/train_transforming_autoencoder.py
How places follow a known shift, as a figure and R2:
    python jobs/figures.py runs/digits-transforming --only known_shifts
Expected time: minutes on 2 CPU cores. It names no classes: a run has a loss, the squared error of the shifted
image, and no error_percent.
"""

from __future__ import annotations

import sys

from capsdist.cli import run_job

PRESETS = ("digits_transforming_autoencoder", "mnist_transforming_autoencoder")

if __name__ == "__main__":
    sys.exit(run_job(__doc__, PRESETS))
