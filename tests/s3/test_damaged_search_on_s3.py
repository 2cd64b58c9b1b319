"""As tests/properties/test_damaged_search.py for objects: fewer cases, since each takes a second."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import Place

from capsdist.tune.journal import JOURNAL_NAME
from properties.damage import PHASES, Accident, accidents, has_files
from properties.search_steps import Truth, start_again, write_search

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """An undamaged search that is done, and what it says."""
    place = tmp_path_factory.mktemp("whole") / "search"
    return place, write_search(place)


@pytest.mark.usefixtures("brief_locks")
@pytest.mark.parametrize("num_cases", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_a_damaged_search_on_s3_keeps_its_other_trials_or_stops_with_one_line(
    whole: tuple[Path, Truth], place: Place, num_cases: int
) -> None:
    source, truth = whole

    @settings(max_examples=num_cases, deadline=None, phases=PHASES)
    @given(
        happened=st.lists(accidents(contents_only=True), max_size=2),
        lost=st.sampled_from([None, "search.json", "result.json"]),
    )
    def case(happened: list[Accident], lost: str | None) -> None:
        name = f"{uuid.uuid4().hex[:8]}/search"
        with tempfile.TemporaryDirectory() as text:
            copy = Path(text) / "search"
            shutil.copytree(source, copy)
            changed = [each.apply(copy, copy) for each in happened if has_files(copy)]
            for path in (path for path in copy.rglob("*") if path.is_file()):
                if (inside := path.relative_to(copy).as_posix()) != lost:
                    place.put(f"{name}/{inside}", path.read_bytes())
        start_again(f"{place.url}/{name}", truth, is_held=copy / JOURNAL_NAME not in changed)

    case()
