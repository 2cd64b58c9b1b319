"""Helpers of other areas, and how many cases a property is tried with."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
for folder in ("s3", "jobs"):
    sys.path.insert(0, str(TESTS / folder))
