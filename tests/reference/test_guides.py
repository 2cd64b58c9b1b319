"""The tables of properties in the guides name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", ["capsdist/ops", "capsdist/models/parallel", "tests/reference"])
def test_every_test_that_a_guide_names_exists(folder: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / folder / "README.md").read_text()))
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert named - set(re.findall(r"def (test_\w+)", sources)) == set()
