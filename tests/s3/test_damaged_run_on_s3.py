"""As tests/properties/test_damaged_run.py for objects: fewer cases, since each takes a second."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import Place

from capsdist.runs.retention import checkpoint_name
from properties.damage import PHASES, Accident, accidents, has_files
from properties.run_steps import ERRORS, Truth, start_or_stop, write_run

pytestmark = pytest.mark.s3
STRANGE = {
    "a marker": {"step_00000024/": b""},
    "a marker of a new one": {"step_00000040/": b""},
    "an empty lock": {".lock": b""},
    "a lock that is garbage": {".lock": b"\xff{"},
    "a lock of another shape": {".lock": b'{"holder": 3, "id": null, "beats": "x"}'},
    "a checkpoint below a checkpoint": {"step_00000024/step_00000016/manifest.json": b"{}"},
    "a folder and a file": {"result.json/x": b"x", "config.json/x": b"x"},
    "a manifest alone": {"step_00000099/manifest.json": b"[]"},
    "nothing": {},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """An undamaged run, and what it says."""
    place = tmp_path_factory.mktemp("whole")
    result = write_run(str(place / "run"), place)
    return place / "run", Truth.of(str(place / "run"), result)


@pytest.mark.usefixtures("brief_locks")
@pytest.mark.parametrize("num_cases", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_a_damaged_run_on_s3_goes_on_or_stops_with_one_line(
    whole: tuple[Path, Truth], place: Place, num_cases: int
) -> None:

    @settings(max_examples=num_cases, deadline=None, phases=PHASES)
    @given(
        happened=st.lists(accidents(contents_only=True), max_size=2),
        lost=st.sampled_from([None, "config.json", "result.json", "step_00000024/manifest.json"]),
        strange=st.sampled_from(sorted(STRANGE)),
    )
    def case(happened: list[Accident], lost: str | None, strange: str) -> None:
        goes_on_or_stops(whole, place, happened, lost, strange)

    case()


def goes_on_or_stops(
    whole: tuple[Path, Truth], place: Place, happened: list[Accident], lost: str | None, strange: str
) -> None:
    run, truth = whole
    case = uuid.uuid4().hex[:8]
    with tempfile.TemporaryDirectory() as text:
        copy = Path(text) / "run"
        shutil.copytree(run, copy)
        changed = {each.apply(copy, copy).relative_to(copy) for each in happened if has_files(copy)}
        objects = {
            path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()
        }
    if lost is not None:
        objects.pop(lost)
        changed.add(Path(lost))
    for name, content in (objects | STRANGE[strange]).items():
        place.put(f"{case}/run/{name}", content)
    place.put(f"{case}/run2/step_00000024/manifest.json", b"sentinel")
    untouched = [step for step in ERRORS if not any(checkpoint_name(step) in path.parts for path in changed)]

    stopped = start_or_stop(f"{place.url}/{case}/run", truth, untouched)
    if stopped is not None:
        assert len(str(stopped).splitlines()) == 1
        assert untouched == [], stopped
    beside = f"{case}/run2/step_00000024/manifest.json"
    assert place.objects(f"{case}/run2/") == {beside: b"sentinel"}
