"""A data set whose files were damaged is read rightly or refused in one line; nothing else is touched.

Links, pipes and folders too; forged indexes whose digest fits are in tests/data/test_damaged_sets.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from limits import within
from properties.damage import CASES, Accident, has_files, try_accidents
from properties.set_steps import KINDS, read_or_refused, write_set


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split that is not changed."""
    return write_set(tmp_path_factory.mktemp("whole") / "train", request.param)


def holds(copy: Path, truth: None, happened: list[Accident], outside: Path) -> None:
    """Let accidents happen to a set, then read it."""
    for each in happened:
        if has_files(copy):
            each.apply(copy, outside)
    with within(60):
        read_or_refused(str(copy))


@pytest.mark.parametrize("num_cases", CASES)
def test_a_damaged_set_is_read_rightly_or_refused(whole: Path, num_cases: int) -> None:
    try_accidents(whole, None, holds, num_cases)
