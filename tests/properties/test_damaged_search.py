"""A search whose files were damaged keeps its other trials, or stops with one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsdist.tune.journal import JOURNAL_NAME
from properties.damage import CASES, CONTENT, Accident, has_files, try_accidents
from properties.search_steps import Truth, start_again, write_search


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """An undamaged search that is done, and what it says."""
    place = tmp_path_factory.mktemp("whole") / "search"
    return place, write_search(place)


def holds(place: Path, truth: Truth, happened: list[Accident], outside: Path) -> None:
    """Let accidents happen to a search, then start it again."""
    changed = [each.apply(place, outside) for each in happened if has_files(place)]
    is_held = all(each.what in CONTENT for each in happened) and place / JOURNAL_NAME not in changed
    start_again(str(place), truth, is_held=is_held)


@pytest.mark.parametrize("num_cases", CASES)
def test_a_damaged_search_keeps_its_other_trials_or_stops_with_one_line(
    whole: tuple[Path, Truth], num_cases: int
) -> None:
    try_accidents(*whole, holds, num_cases)
