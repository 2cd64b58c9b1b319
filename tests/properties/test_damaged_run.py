"""A run whose files were damaged goes on from its newest verified checkpoint, or stops with one line.

What `launch`, a worker, `evaluate.py` and `overview` read is read here in their order, without Ray. Not held:
numbers in `metrics.jsonl`, whose lines have no digest, and on which nothing that is computed depends.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from capsdist.errors import CapsdistError
from capsdist.runs.locks import LOCK_NAME
from capsdist.runs.retention import checkpoint_name
from capsdist.storage.durable import remove_tree
from properties.damage import CASES, Accident, has_files, try_accidents
from properties.run_steps import ERRORS, Truth, start_or_stop, write_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """An undamaged run, and what it says."""
    place = tmp_path_factory.mktemp("whole")
    run = place / "run"
    result = write_run(str(run), place)
    return run, Truth.of(str(run), result)


def assert_one_line(error: CapsdistError, run: Path) -> None:
    """The message is one line that names the run or a file of it."""
    assert len(str(error).splitlines()) == 1
    assert str(run) in str(error) or repr(run.name) in str(error), str(error)


def holds(run: Path, truth: Truth, happened: list[Accident], outside: Path) -> None:
    """Let accidents happen to a run, then look at it and start it again.

    What lies in the place of the lock is the user's to remove: the message says so, and then the run goes on.
    """
    changed = [each.apply(run, outside) for each in happened if has_files(run)]
    touched = {part for path in changed for part in (path, path.parent)}
    untouched = [step for step in ERRORS if run / checkpoint_name(step) not in touched]
    stopped = start_or_stop(str(run), truth, untouched)
    if stopped is not None and LOCK_NAME in str(stopped):
        assert_one_line(stopped, run)
        assert "; remove it and start again" in str(stopped)
        remove_tree(run / LOCK_NAME)
        stopped = start_or_stop(str(run), truth, untouched)
    if stopped is not None:
        assert_one_line(stopped, run)
        assert untouched == [], stopped


@pytest.mark.parametrize("num_cases", CASES)
def test_a_damaged_run_goes_on_or_stops_with_one_line(whole: tuple[Path, Truth], num_cases: int) -> None:
    try_accidents(*whole, holds, num_cases)
