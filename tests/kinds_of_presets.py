"""Presets that tests go through where each takes a while."""

from __future__ import annotations

from capsdist.config import PRESETS, get_preset
from capsdist.config.models import CapsuleConfig
from capsdist.config.presets.mnist_ablation import ABLATIONS

__all__ = ["DISTINCT", "OF_CAPSULES"]

DISTINCT = [name for name in PRESETS if name not in ABLATIONS]
"""Without those that are mnist_paper but for one value."""
OF_CAPSULES = [name for name in DISTINCT if isinstance(get_preset(name).model, CapsuleConfig)]
