"""A study of seconds, which shows that every experiment runs: of real digits where they are packed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from capsdist.claims.settings import Settings
from capsdist.config import get_preset
from capsdist.data.sets.few import pack_few
from capsdist.data.sets.spec import TRAIN_TEST

__all__ = ["smoke_settings"]


def smoke_settings(settings: Settings, scratch: Path) -> tuple[Settings, str]:
    """Return settings for eight tiny networks and two steps each, and what to know first.

    Images and runs lie below `scratch`: the first 96 and 40 images of the packed MNIST and a few of
    smallNORB's azimuths, or where they are not packed, printed digits and random images.
    """
    root = str(scratch / "data")
    digits = pack_few("mnist", TRAIN_TEST, settings.root, root)
    views = get_preset("smallnorb_azimuth_paper").data
    toys = pack_few(views.name, [*views.splits.values()], settings.root, root)
    small = replace(
        settings, size="tiny", seeds=(0, 1), fractions=(50.0,), epochs=2, images=None, test_images=None,
        data="mnist", root=root, storage=str(scratch / "runs"), device="cpu",
    )  # fmt: skip
    return small, f"Smoke: tiny networks after two steps; {digits}; {toys}; no result."
