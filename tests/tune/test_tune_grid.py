"""A grid by its name: which cells run, continued, done, refused; no Ray starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import job_helpers
import pytest

from capsdist.config import Config, with_values
from capsdist.errors import ConfigError, RunError
from capsdist.tune.budget import Budget
from capsdist.tune.folder import SearchFolder
from capsdist.tune.grid import run_grid
from capsdist.tune.journal import FAILED, FINISHED, STOPPED
from capsdist.tune.progress import SearchDisplay
from capsdist.tune.search import Plan
from capsdist.tune.session import TrialSession
from capsdist.tune.space import Search, Space
from limits import without_progress

BUDGET = Budget(2, 1, "cpu", 1)
Executor = Callable[..., list[Plan]]


@pytest.fixture
def config(config: Config) -> Config:
    job_helpers.write_tiny(Path(config.data.root))
    return config


@pytest.fixture
def cells(config: Config) -> dict[str, Config]:
    return {f"r{r}": with_values(config, {"routing.iterations": r}) for r in (1, 2, 3)}


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Executor:
    """In place of Ray Tune: what it asks for ends at once; after `most` cells comes a signal."""

    def install(most: int = 99, failing: str = "") -> list[Plan]:
        plans: list[Plan] = []

        def run(self: TrialSession, source: Any, plan_of: Any, header_of: Any) -> bool:
            plans.append(plan_of(BUDGET))
            self.show(header_of(BUDGET))
            journal, left = self.journal, most
            trials = journal.history.running()
            while trials or (values := source.ask()) is not None:
                if trials:
                    trial = trials.pop(0)
                else:
                    number = journal.history.next_number()
                    journal.append("trial", number=number, values=values)
                    trial = journal.history.trials[number]
                self.show({"kind": "trial_start", "trial": trial})
                if not left:
                    return False
                left -= 1
                if trial.name == failing:
                    journal.append("end", number=trial.number, status=FAILED, reason="it broke")
                else:
                    error = float(plans[-1].config_of(trial.values).routing.iterations)
                    journal.append("report", number=trial.number, step=16, error_percent=error)
                    journal.append("end", number=trial.number, status=FINISHED, reason="")
                self.show({"kind": "trial_end", "trial": trial})
            return True

        monkeypatch.setattr(TrialSession, "run", run)
        return plans

    return install


def names_begun(config: Config) -> list[str]:
    return [trial.name for trial in SearchFolder(config).journal().history.trials.values()]


def test_cells_run_to_their_end_and_are_tested_on_the_test_split(config, cells, executor):
    plans = executor()
    found = run_grid(config, cells, lambda row: None)
    assert found is not None
    assert {name: (cell.status, cell.error_percent) for name, cell in found.items()} == {
        "r1": (FINISHED, 1.0), "r2": (FINISHED, 2.0), "r3": (FINISHED, 3.0),
    }  # fmt: skip
    (plan,) = plans
    assert (plan.max_trials, plan.grace_steps, plan.total_steps) == (3, None, 16)
    folder = SearchFolder(config)
    for name, cell in cells.items():
        ran = plan.config_of({"cell": name})
        assert (ran.data.test_split, ran.model, ran.routing) == ("test", cell.model, cell.routing)
        assert (ran.train.storage, ran.train.name) == (folder.trials, name)
        assert (ran.train.num_workers, ran.launch.cpus_per_worker) == (1, 1)


def test_a_stopped_grid_goes_on_with_the_missing_cells(config, cells, executor):
    executor(most=1)
    assert run_grid(config, cells, lambda row: None) is None
    assert names_begun(config) == ["r1", "r2"]
    executor()
    found = run_grid(config, cells, lambda row: None)
    assert found is not None
    assert [cell.status for cell in found.values()] == [FINISHED] * 3
    assert names_begun(config) == ["r1", "r2", "r3"]  # none twice


def test_a_failed_cell_is_an_outcome_and_is_tried_again(config, cells, executor):
    executor(failing="r2")
    found = run_grid(config, cells, lambda row: None)
    assert found is not None
    assert (found["r2"].status, found["r2"].reason, found["r2"].error_percent) == (FAILED, "it broke", None)
    assert found["r3"].status == FINISHED
    executor()
    again = run_grid(config, cells, lambda row: None)
    assert again is not None
    assert again["r2"].status == FINISHED
    assert names_begun(config) == ["r1", "r2", "r3", "r2"]


def test_a_grid_that_is_done_starts_nothing_and_may_grow(config, cells, executor):
    two = {name: cells[name] for name in ("r1", "r3")}
    executor()
    run_grid(config, two, lambda row: None)
    executor(most=0)
    rows: list[dict[str, Any]] = []
    found = run_grid(config, two, rows.append)
    assert found is not None
    assert [cell.error_percent for cell in found.values()] == [1.0, 3.0]
    assert [row for row in rows if row["kind"] != "status"] == [
        {"kind": "note", "message": "grid tune-tiny is done already"}
    ]
    executor()
    assert run_grid(config, cells, lambda row: None) is not None
    assert names_begun(config) == ["r1", "r3", "r2"]


def test_a_cell_under_way_that_is_not_asked_for_any_more_does_not_run(config, cells, executor):
    executor(most=1)
    assert run_grid(config, cells, lambda row: None) is None  # r2 was under way
    executor()
    rest = {name: cells[name] for name in ("r1", "r3")}
    assert run_grid(config, rest, lambda row: None) is not None
    trials = SearchFolder(config).journal().history.trials.values()
    ends = [(trial.name, trial.status) for trial in trials]
    assert ends == [("r1", FINISHED), ("r2", STOPPED), ("r3", FINISHED)]


@pytest.mark.parametrize(
    ("field", "old", "new"), [("optim.learning_rate", 0.001, 0.01), ("train.epochs", 2, 3)]
)
def test_a_cell_with_other_values_is_refused_by_name(config, cells, executor, field, old, new):
    executor()
    run_grid(config, cells, lambda row: None)
    cells["r2"] = with_values(cells["r2"], {field: new})
    with pytest.raises(ConfigError) as caught:
        run_grid(config, cells, lambda row: None)
    assert str(caught.value) == (
        f"train.name='tune-tiny': this grid is another one: r2: {field} {old} -> {new}; "
        "set these back, or choose another --train.name"
    )


def test_the_folder_of_a_search_is_no_grid_and_the_other_way_round(config, cells, executor):
    folder, search = SearchFolder(config), Search()
    folder.create()
    folder.write_definition(config, Space(iterations=(1, 3)), search)
    with pytest.raises(ConfigError, match="is a search, not a grid; choose another"):
        run_grid(config, cells, lambda row: None)
    other = with_values(config, {"train.name": "grid"})
    executor()
    run_grid(other, cells, lambda row: None)
    with pytest.raises(ConfigError, match="is a grid, not a search; choose another"):
        SearchFolder(other).check_continues(other, Space(iterations=(1, 3)), search)


def test_a_problem_of_several_cells_is_told_once(config, cells):
    changes = {"optim.beta1": 2.0, "train.dry_run": 3}
    cells = {name: with_values(cell, changes) for name, cell in cells.items()}
    with pytest.raises(ConfigError) as caught:
        run_grid(config, cells, lambda row: None)
    assert [problem.field for problem in caught.value.problems] == ["optim.beta1", "train.dry_run"]
    assert not Path(config.train.storage).exists()


def test_a_damaged_definition_is_refused_with_the_remedy(config, cells, executor):
    executor()
    run_grid(config, cells, lambda row: None)
    path = Path(SearchFolder(config).files.path("grid.json"))
    path.write_bytes(path.read_bytes().replace(b'"tiny"', b'"tiNy"', 1))
    with pytest.raises(RunError, match=r"grid\.json was changed.*; delete the file and start again"):
        run_grid(config, cells, lambda row: None)


def test_what_a_person_sees(config, cells, executor, capsys):
    executor()
    with SearchDisplay(plain=True) as display:
        run_grid(config, cells, display)
    lines = without_progress(capsys.readouterr().out).splitlines()
    assert lines[0].startswith("grid tune-tiny: 3 cells; 2 at a time")
    assert lines[1:3] == ["r1  begins", "r1  finished  error_percent 1.00"]
