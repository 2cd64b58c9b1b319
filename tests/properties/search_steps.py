"""Steps of a search for property tests: write one, and start it again after its files were damaged.

What `run_search` reads is read here in its order, without Ray. Not held: images/s, which comes from metrics.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from job_helpers import NETWORK

from capsdist.config import Config
from capsdist.errors import CapsdistError
from capsdist.train.metrics import METRICS_NAME
from capsdist.tune.folder import SearchFolder
from capsdist.tune.journal import FAILED, FINISHED, JOURNAL_NAME, STOPPED, History
from capsdist.tune.report import SearchResult, sum_up
from capsdist.tune.space import Search, Space

SPACE, SEARCH = Space(iterations=(1, 2, 3), class_dim=(2, 4)), Search(trials=4, concurrency=1)
FATES = {1: (FINISHED, 12.5), 2: (STOPPED, 40.25), 3: (FAILED, 70.5), 4: (FINISHED, 7.75)}


def config_of(place: str) -> Config:
    """The configuration of the search in the folder or at the URL `place`."""
    storage, _, name = place.rpartition("/")
    train = NETWORK.train.model_copy(update={"name": name, "storage": storage})
    return NETWORK.model_copy(update={"train": train})


@dataclass(frozen=True)
class Truth:
    """What an undamaged search says."""

    history: History
    result: SearchResult

    def __repr__(self) -> str:
        return "the truth"


def write_search(place: Path) -> Truth:
    """Make an undamaged search that is done in the folder `place`, and return what it says."""
    config = config_of(str(place))
    folder = SearchFolder(config)
    folder.create()
    folder.write_definition(config, SPACE, SEARCH)
    journal = folder.journal()
    journal.append("attempt")
    for number, (status, error) in FATES.items():
        values = {"routing.iterations": 1 + number % 3, "model.class_dim": 2 + 2 * (number % 2)}
        journal.append("trial", number=number, values=values)
        for step in (8, 16):
            journal.append("report", number=number, step=step, error_percent=error + 24 - step)
        journal.append("report", number=number, step=24, error_percent=error)
        journal.append("end", number=number, status=status, reason="")
        run = place / "trials" / f"trial-{number:02d}"
        run.mkdir(parents=True)
        row = '{"kind": "train", "step": 8, "images_per_s": 90.5}\n'
        (run / METRICS_NAME).write_text(row * 3)
    journal.append("infeasible", values={"model.class_dim": 99}, reason="too large")
    result = sum_up(config, journal.history, folder.files, 24, SEARCH.trials)
    folder.write_result(result)
    return Truth(journal.history, result)


def assert_true(history: History, truth: History) -> None:
    """Whatever is known of a trial is true, in its order."""
    for number, trial in history.trials.items():
        real = truth.trials[number]
        assert trial.values == real.values
        assert trial.status in (real.status, "running")
        left = iter(real.reports)
        assert all(report in left for report in trial.reports)
    left = iter(truth.reports)
    assert all(report in left for report in history.reports)
    assert all(each in truth.infeasible for each in history.infeasible)


def without_speed(result: SearchResult, folder: str) -> SearchResult:
    """What is held of a result that lies in `folder`."""
    config = {name: values for name, values in result.config.items() if name != "train"}
    rows = [replace(row, images_per_s=None) for row in result.trials]
    return replace(result, folder=folder, trials=rows, config=config, command="", wall_s=0.0, attempts=[])


def start_again(place: str, truth: Truth, *, is_held: bool) -> None:
    """Start the search at `place` again and let a trial begin; it goes on, or stops with one line.

    is_held: its journal is undamaged, so that it must go on with all that it knows.
    """
    config, warnings = config_of(place), list[str]()
    folder = SearchFolder(config, warnings.append)
    try:
        folder.create()
        with folder.lock():
            folder.check_continues(config, SPACE, SEARCH)
            if (result := folder.read_result()) is not None:
                assert result == truth.result
            journal = folder.journal()
            assert_true(journal.history, truth.history)
            if journal.history.ended():
                summed = sum_up(config, journal.history, folder.files, 24, SEARCH.trials, warnings.append)
                folder.write_result(summed)
                assert folder.read_result() == summed
            number = journal.history.next_number()
            if number in truth.history.trials:
                assert not folder.files.sizes(f"trials/trial-{number:02d}/")
            before = folder.files.read(JOURNAL_NAME) or b""
            folder.write_definition(config, SPACE, SEARCH)
            journal.append("trial", number=number, values={"routing.iterations": 1})
            assert (folder.files.read(JOURNAL_NAME) or b"").startswith(before.rpartition(b"\n")[0])
            assert folder.journal().history.trials[number].values == {"routing.iterations": 1}
    except CapsdistError as error:
        stopped = str(error)
        assert len(stopped.splitlines()) == 1
        assert place in stopped or repr(folder.name) in stopped
        return
    if is_held:
        assert journal.history.reports == truth.history.reports
        assert without_speed(summed, place) == without_speed(truth.result, place)
    assert all(len(line.splitlines()) == 1 for line in warnings), warnings
