"""A search by its name: continued, done, refused; all before Ray starts."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import job_helpers
import pytest

from capsdist.config import Config, get_preset, with_values
from capsdist.errors import ConfigError, DataError, RunError
from capsdist.tune.folder import SearchFolder
from capsdist.tune.journal import FINISHED
from capsdist.tune.report import rows_of, sum_up
from capsdist.tune.run import of_trials, preview, run_search
from capsdist.tune.space import Search, Space, validation_problem

SPACE, SEARCH = Space(iterations=(1, 3)), Search(trials=3, concurrency=1)


@pytest.fixture(autouse=True)
def _no_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray would start")

    monkeypatch.setattr("capsdist.tune.session.ray_session", refuse)


@pytest.fixture
def config(config: Config) -> Config:
    job_helpers.write_tiny(Path(config.data.root))
    return config


@pytest.fixture
def done(config: Config) -> Config:
    """The configuration of a search that is done: two points of two."""
    folder = SearchFolder(config)
    folder.create()
    folder.write_definition(config, SPACE, SEARCH)
    journal = folder.journal()
    for number, iterations in ((1, 3), (2, 1)):
        journal.append("trial", number=number, values={"routing.iterations": iterations})
        journal.append("report", number=number, step=16, error_percent=4.0 + number)
        journal.append("end", number=number, status=FINISHED, reason="")
    folder.write_result(sum_up(config, journal.history, folder.files, 16, SEARCH.trials))
    return config


def changed(config: Config, field: str, value: Any) -> Config:
    return with_values(config, {field: value})


def test_a_search_that_is_done_says_so_and_gives_its_result(done):
    rows: list[dict[str, Any]] = []
    result = run_search(done, SPACE, SEARCH, rows.append)
    assert result == SearchFolder(done).read_result()
    assert result is not None
    assert (result.best, result.error_percent) == ("trial-01", 5.0)
    assert rows == [{"kind": "note", "message": "search tune-tiny is done already"}]


def test_fewer_trials_are_done_too_and_more_find_the_space_used_up(done):
    assert run_search(done, SPACE, Search(trials=1, concurrency=1), print) is not None
    result = run_search(done, SPACE, Search(trials=9, concurrency=1), print)
    assert result is not None
    assert (len(result.trials), result.max_trials) == (2, 9)


REFUSED = [
    ("space.iterations", (1, 3), (1, 2), lambda: (Space(iterations=(1, 2)), SEARCH)),
    ("space.class_dim", (), (4,), lambda: (Space(iterations=(1, 3), class_dim=(4,)), SEARCH)),
    ("search.seed", 0, 1, lambda: (SPACE, Search(trials=3, concurrency=1, seed=1))),
    ("search.scheduler", "asha", "none", lambda: (SPACE, Search(trials=3, scheduler="none"))),
]


@pytest.mark.parametrize(("field", "old", "new", "options"), REFUSED)
def test_another_space_or_another_way_is_refused_by_name(done, field, old, new, options):
    with pytest.raises(ConfigError) as caught:
        run_search(done, *options(), print)
    assert str(caught.value) == (
        f"train.name='tune-tiny': this search is another one: {field} {old!r} -> {new!r}; "
        "set these back, or choose another --train.name"
    )


@pytest.mark.parametrize(
    ("field", "old", "new"),
    [("loss.m_plus", 0.9, 0.8), ("train.epochs", 2, 3), ("optim.learning_rate", 0.001, 0.01)],
)
def test_another_configuration_is_refused_by_name(done, field, old, new):
    with pytest.raises(ConfigError, match=f"this search is another one: {field} {old} -> {new}; set these"):
        run_search(changed(done, field, new), SPACE, SEARCH, print)


@pytest.mark.parametrize(
    ("field", "value"), [("train.num_workers", 2), ("train.log_every_steps", 9), ("launch.max_failures", 0)]
)
def test_where_and_how_fast_it_computes_may_change(done, field, value):
    assert run_search(changed(done, field, value), SPACE, SEARCH, print) is not None


def test_the_folder_of_a_training_run_is_refused(config):
    folder = Path(config.train.storage, config.train.name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.model_dump_json())
    with pytest.raises(ConfigError, match=r"train.name='tune-tiny': is a training run, not a search"):
        run_search(config, SPACE, SEARCH, print)


def test_a_search_of_another_version_is_refused(done):
    path = Path(SearchFolder(done).files.path("search.json"))
    stored = json.loads(path.read_text())
    del stored["crc32"]
    stored["space"]["depth"] = [1]
    path.write_text(json.dumps(stored))
    with pytest.raises(RunError, match=r"search.json space.depth is not a field of this version; use the"):
        run_search(done, SPACE, SEARCH, print)


def test_a_search_of_0_1_goes_on_as_it_began(tmp_path):
    presets = Path(__file__).parents[1] / "unit" / "presets_of_0_1.json"  # written by the code of 0.1
    begun = json.loads(presets.read_text())["mnist_official"]
    today = changed(get_preset("mnist_official"), "train.storage", str(tmp_path))
    folder = SearchFolder(today)
    folder.create()
    begun["train"] |= {"storage": str(tmp_path), "name": today.train.name}
    sections = {"config": begun, "space": SPACE.model_dump(), "search": SEARCH.model_dump()}
    Path(folder.files.path("search.json")).write_text(json.dumps(sections))
    config, note = folder.check_continues(today, SPACE, SEARCH)
    assert (config.model.primary_coupling, config.data.last_batch) == (False, "short")
    assert folder.as_begun(today) == config
    assert validation_problem(config) is None  # today's preset has no validation
    assert validation_problem(today) is not None
    assert note is not None
    assert note.startswith("continues as version 0.1 began it: model.primary_coupling=False not True, ")
    asked = changed(today, "optim.learning_rate", 0.5)
    with pytest.raises(ConfigError, match=r"this search is another one: optim.learning_rate 0.001 -> 0.5"):
        folder.check_continues(asked, SPACE, SEARCH)


DAMAGE = {
    "empty": (lambda content: b"", "is empty"),
    "cut": (lambda content: content[:99], "is not JSON"),
    "binary": (lambda content: b"\xff\x00", "is not UTF-8"),
    "a digit": (lambda content: content.replace(b'"trials": 3', b'"trials": 2', 1), "was changed"),
    "a type": (lambda content: b"[1]", "document="),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_definition_is_refused_in_one_line_whose_remedy_works(done, kind):
    path = Path(SearchFolder(done).files.path("search.json"))
    change, reason = DAMAGE[kind]
    assert change(path.read_bytes()) != path.read_bytes()
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RunError) as caught:
        run_search(done, SPACE, SEARCH, print)
    assert str(caught.value).startswith(f"{path} {reason}")
    assert str(caught.value).endswith(
        "; use the version that wrote it, or if this command has the options that the search was started "
        "with, delete the file and start again; else choose another --train.name"
    )
    path.unlink()
    assert run_search(done, SPACE, SEARCH, print) is not None


@pytest.mark.parametrize("change", [lambda c: b"", lambda c: c[:200], lambda c: c.replace(b"5.0", b"2.0", 1)])
def test_a_damaged_result_is_passed_over_and_summed_up_anew(done, change):
    path, rows = Path(SearchFolder(done).files.path("result.json")), []
    before = run_search(done, SPACE, SEARCH, rows.append)
    path.write_bytes(change(path.read_bytes()))
    rows.clear()
    again = run_search(done, SPACE, Search(trials=2, concurrency=1), rows.append)
    assert [row["message"].partition(":")[0] for row in rows] == ["warning"]
    assert rows[0]["message"].startswith(f"warning: passed over a result: {path} ")
    assert before is not None
    assert again is not None
    assert (again.best, again.error_percent, again.trials) == ("trial-01", 5.0, before.trials)
    assert SearchFolder(done).read_result() == again


def test_the_number_of_a_trial_that_has_left_a_run_is_not_given_again(config):
    folder = SearchFolder(config)
    Path(folder.trials, "trial-04").mkdir(parents=True)
    Path(folder.trials, "trial-x").mkdir()
    assert folder.journal().history.next_number() == 5


def test_damaged_metrics_of_a_trial_are_passed_over(done):
    folder = SearchFolder(done)
    for number, content in ((1, b'{"kind": "train", "step": 1, "images_per_s": 5.0}\n\xff\n'), (2, None)):
        path = Path(folder.trials, f"trial-{number:02d}", "metrics.jsonl")
        (path.parent if content else path).mkdir(parents=True)
        if content:
            path.write_bytes(content)
    warnings = []
    rows = rows_of(folder.journal().history, done, folder.files, warnings.append)
    assert [row.images_per_s for row in rows] == [5.0, None]
    assert [warning.startswith("warning: passed over ") for warning in warnings] == [True, True]


def test_a_search_in_progress_is_not_started_twice(config):
    folder = SearchFolder(config)
    folder.create()
    with (
        folder.lock(),
        pytest.raises(RunError, match=r"train.name='tune-tiny': this run is being trained by"),
    ):
        run_search(config, SPACE, SEARCH, print)


def test_a_space_without_a_feasible_point_is_refused_before_anything_starts(config):
    rule = r"space=\{'class_dim': \(4, 90\)\}: no point can be trained, the first because [\d,]+ parameters"
    search = Search(max_parameters=10, concurrency=1)
    with pytest.raises(ConfigError, match=rule):
        run_search(config, Space(class_dim=(4, 90)), search, print)
    [problem], lines = preview(config, Space(class_dim=(4, 90)), search)
    assert re.match(rule, str(problem))
    assert lines == []


def test_a_preview_prices_points(config):
    found, lines = preview(config, Space(class_dim=(4, 90)), Search(max_parameters=9000, concurrency=1))
    assert found == []
    assert lines[0] == "of all 2 points 1 can be trained"
    assert lines[1].startswith("infeasible: class_dim 90: ")
    assert [line.partition(" with ")[0] for line in lines[2:]] == ["trials: 1 at a time, 1 worker each"]


@pytest.mark.parametrize("steps", [16, 17])
def test_a_milestone_after_the_end_is_refused(config, steps):
    with pytest.raises(
        ConfigError, match=rf"search.grace_steps={steps}: ASHA would first decide after {steps}"
    ):
        run_search(config, SPACE, Search(grace_steps=steps, concurrency=1), print)


def test_missing_data_is_told_as_for_a_run(config):
    with pytest.raises(DataError, match="there is no such data set"):
        run_search(changed(config, "data.root", "nowhere"), SPACE, SEARCH, print)


def test_optuna_is_missed_before_anything_starts(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"search.searcher='optuna'"):
        run_search(config, SPACE, Search(searcher="optuna", concurrency=1), print)


def test_with_something_to_try_ray_would_start(config):
    with pytest.raises(AssertionError, match="Ray would start"):
        run_search(config, SPACE, SEARCH, print)


def test_a_search_without_validation_is_refused_in_one_line(config, tmp_path):
    without = changed(changed(config, "data.validation_split", None), "train.keep_best", 0)
    with pytest.raises(
        ConfigError, match=r"data.validation_split=None: has no validation, .*pack it"
    ) as caught:
        run_search(without, SPACE, SEARCH, print)
    assert "\n" not in str(caught.value)
    assert [problem.field for problem in preview(without, SPACE, SEARCH)[0]] == ["data.validation_split"]
    assert not Path(SearchFolder(without).files.path("search.json")).exists()


def test_trials_do_not_look_at_the_test_split(config):
    data = of_trials(changed(config, "data.validation_split", "validation").data)
    assert data.splits == {"train_split": "train", "test_split": "validation"}
    assert of_trials(config.data) == config.data  # a search of version 0.1: on the test split
