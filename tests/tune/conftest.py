"""What the tests of searches share: a small configuration, and folders that look like those of a search."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from capsdist.config import Config
from capsdist.runs.files import LocalFiles
from capsdist.tune.journal import Journal

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
import job_helpers


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A tiny network on the data set `tiny`, which need not exist; trials of 16 steps, 8 an epoch."""
    return job_helpers.tiny_config(tmp_path / "data", tmp_path / "runs", "tune-tiny", num_workers=1)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A new journal."""
    return Journal(LocalFiles(tmp_path))
