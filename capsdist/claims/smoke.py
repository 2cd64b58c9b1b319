"""A study of seconds, which shows that every experiment runs: of real digits where they are packed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from capsdist.claims.settings import Settings
from capsdist.data import Split, write_split
from capsdist.data.sets.printed import printed_digits
from capsdist.errors import DataError
from capsdist.storage import join

__all__ = ["smoke_settings"]

_COUNTS = {"train": 400, "test": 200}
_EPOCHS = 4
_CLASSES = tuple("0123456789")


def smoke_settings(settings: Settings, scratch: Path) -> tuple[Settings, str]:
    """Return settings for networks of about 130,000 parameters and a few steps, and what a reader must know.

    Digits and runs lie below `scratch`: the first 400 and 200 images of the packed set, or where it is not
    packed, printed digits.
    """
    digits = _packed_digits(join(settings.root, settings.data))
    kind = f"the first digits of the packed set {settings.data}"
    if digits is None:
        kind = "printed digits, because no packed set is there"
        digits = {split: printed_digits(num) for split, num in _COUNTS.items()}
    for split, (images, labels) in digits.items():
        place = join(str(scratch / "data"), settings.data, split)
        write_split(place, images, labels, classes=_CLASSES, licence="for a smoke test")
    small = replace(
        settings, size="tiny", seeds=(0, 1), fractions=(25.0, 100.0), epochs=_EPOCHS, images=None,
        test_images=None, root=str(scratch / "data"), storage=str(scratch / "runs"), device="cpu",
    )  # fmt: skip
    return small, f"Smoke: tiny networks after a few steps on {kind}; no result."


def _packed_digits(place: str) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Return the first images and labels of both splits of a packed set, None where there is none."""
    try:
        splits = {split: Split(join(place, split)) for split in _COUNTS}
    except DataError:
        return None
    return {
        split: found.gather(np.arange(min(_COUNTS[split], found.index.num_samples)))
        for split, found in splits.items()
    }
