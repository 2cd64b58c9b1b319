"""A run whose files were damaged goes on from its newest whole checkpoint, or stops with one line.

What `launch`, a worker, `evaluate.py` and `overview` read is read here in their order, without Ray. Not held:
numbers in `metrics.jsonl`, whose lines have no digest, and on which nothing that is computed depends.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from capsdist.errors import CapsdistError
from capsdist.train.cluster.retention import checkpoint_name
from properties.damage import CONTENT, MEMORY, Accident, accidents, fingerprint, make_outside
from properties.run_steps import ERRORS, Truth, look, start, write_run

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # accidents are small as they are


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """An undamaged run, and what it says."""
    place = tmp_path_factory.mktemp("whole")
    run = place / "run"
    result = write_run(str(run), place)
    return run, Truth.of(str(run), result)


@contextlib.contextmanager
def copied(run: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a copy of a run, and a tree beside it that nothing may touch; held to that at the end."""
    with tempfile.TemporaryDirectory(prefix="damaged-", dir=MEMORY) as text:
        place = Path(text).resolve()
        shutil.copytree(run, place / "runs" / "run")
        outside = make_outside(place, run)
        before = fingerprint(outside)
        yield place / "runs" / "run", outside
        assert before.items() <= fingerprint(outside).items()
        assert sorted(path.name for path in place.iterdir()) == ["outside", "runs"]
        assert [path.name for path in (place / "runs").iterdir()] == ["run"]


def assert_one_line(error: CapsdistError, run: Path) -> None:
    """The message is one line that names the run or a file of it."""
    assert len(str(error).splitlines()) == 1
    assert str(run) in str(error) or repr(run.name) in str(error), str(error)


def holds(run: Path, truth: Truth, happened: list[Accident], outside: Path) -> None:
    """Let accidents happen to a run, then look at it and start it again."""
    changed = [each.apply(run, outside) for each in happened if has_files(run)]
    touched = {part for path in changed for part in (path, path.parent)}
    untouched = [step for step in ERRORS if run / checkpoint_name(step) not in touched]
    with contextlib.suppress(CapsdistError):
        look(str(run), truth, [])
    stopped: CapsdistError | None = None
    try:
        done = start(str(run), truth)
    except CapsdistError as error:
        stopped = error
    else:
        assert untouched == [] or (done.step is not None and done.step >= max(untouched))
        assert done.result in (None, truth.result)
        assert all(len(line.splitlines()) == 1 for line in done.warnings), done.warnings
    if stopped is not None:
        assert_one_line(stopped, run)
        assert untouched == [] or any(each.what not in CONTENT for each in happened), stopped


def has_files(run: Path) -> bool:
    return any(path.is_file() and not path.is_symlink() for path in run.rglob("*"))


QUICK = settings(max_examples=250, deadline=None, phases=PHASES)


@QUICK
@given(happened=st.lists(accidents(), min_size=1, max_size=3))
def test_a_damaged_run_goes_on_or_stops_with_one_line(
    whole: tuple[Path, Truth], happened: list[Accident]
) -> None:
    run, truth = whole
    with copied(run) as (copy, outside):
        holds(copy, truth, happened, outside)
