"""Where points come from: none twice, none that cannot be trained, and Optuna learns across starts."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from capsdist.errors import ConfigError
from capsdist.runs.files import LocalFiles
from capsdist.tune.journal import FAILED, FINISHED, STOPPED, History, Journal
from capsdist.tune.source import Source
from capsdist.tune.space import Space

SPACE = Space(iterations=(1, 2, 3, 4), class_dim=(2, 3, 5, 8))
ALL = 16


def too_many(values: Any) -> str | None:
    """Refuse four points of SPACE."""
    product = values["routing.iterations"] * values["model.class_dim"]
    return f"{product} is above 12" if product > 12 else None


NUM_REFUSED = sum(i * d > 12 for i in SPACE.iterations for d in SPACE.class_dim)


def ask_all(
    searcher: Any, journal: Journal, refuse: Any = too_many, limit: int = 100, seed: int = 0
) -> Source:
    """Ask until there is nothing more, writing down as a search does."""

    def note(values: Any, reason: str) -> None:
        journal.append("infeasible", values=values, reason=reason)

    source = Source(SPACE, seed, journal.history, refuse, note, searcher)
    while len(journal.history.trials) < limit and (values := source.ask()) is not None:
        number = len(journal.history.trials) + 1
        journal.append("trial", number=number, values=values)
        journal.append("report", number=number, step=4, error_percent=float(values["model.class_dim"]))
        journal.append("end", number=number, status=FINISHED, reason="")
        source.tell(journal.history.trials[number])
    return source


def keys(found: Any) -> list[tuple[Any, ...]]:
    return [tuple(values.values()) for values in found]


@pytest.mark.parametrize("searcher", ["random", "optuna"])
@pytest.mark.parametrize("seed", [0, 3])
def test_every_feasible_point_is_tried_once_and_every_other_refused_once(searcher, seed, journal):
    ask_all(searcher, journal, seed=seed)
    tried = keys(trial.values for trial in journal.history.trials.values())
    refused = keys(values for values, _ in journal.history.infeasible)
    assert len(tried) == len(set(tried)) == ALL - NUM_REFUSED
    assert len(refused) == len(set(refused)) == NUM_REFUSED
    assert not set(tried) & set(refused)
    assert all(reason.endswith("is above 12") for _, reason in journal.history.infeasible)


@pytest.mark.parametrize("searcher", ["random", "optuna"])
@pytest.mark.parametrize("cut", [1, 5])
def test_a_source_that_begins_again_goes_on(searcher, cut, journal):
    ask_all(searcher, journal, limit=cut)
    ask_all(searcher, journal)  # a new source, with what is written down
    tried = keys(trial.values for trial in journal.history.trials.values())
    assert len(tried) == len(set(tried)) == ALL - NUM_REFUSED


def test_random_order_is_that_of_the_space_whenever_it_is_cut(journal, tmp_path):
    ask_all("random", journal, limit=3)
    ask_all("random", journal)
    (tmp_path / "whole").mkdir()
    whole = Journal(LocalFiles(tmp_path / "whole"))
    ask_all("random", whole)
    assert [t.values for t in journal.history.trials.values()] == [
        t.values for t in whole.history.trials.values()
    ]


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_a_space_without_a_feasible_point_ends(searcher, journal):
    ask_all(searcher, journal, refuse=lambda values: "never")
    assert journal.history.trials == {}
    assert len(journal.history.infeasible) == ALL


def test_an_endless_space_without_a_feasible_point_ends_too():
    refused: list[Any] = []
    space = Space(learning_rate_range=(1e-5, 1e-1))
    source = Source(space, 0, History(), lambda _: "never", lambda *row: refused.append(row))
    assert source.ask() is None
    assert len(refused) == 1000


@pytest.mark.parametrize("seed", range(3))
def test_optuna_learns_from_earlier_starts(seed, journal):
    """After a start in which low rates were good, suggestions have lower ones than chance gives."""
    space = Space(iterations=(1, 2, 3, 4, 5), learning_rate_range=(1e-4, 1e-1))
    for number in range(1, 31):
        rate = 10 ** (-4 + number / 10)
        journal.append("trial", number=number, values={"routing.iterations": 3, "optim.learning_rate": rate})
        journal.append("report", number=number, step=4, error_percent=100 * rate)
        status = FINISHED if number % 3 else STOPPED
        journal.append("end", number=number, status=status, reason="")
    rates = {}
    for name, history in (("told", journal.history), ("untold", History())):
        source = Source(space, seed, history, lambda _: None, lambda *_: None, "optuna")
        rates[name] = sorted((source.ask() or {})["optim.learning_rate"] for _ in range(9))
    assert rates["told"][4] < 0.003
    assert rates["untold"][4] > rates["told"][4]


def test_optuna_takes_in_every_way_a_trial_can_end(journal):
    source = ask_all("optuna", journal, limit=2)
    for status, reports in ((STOPPED, 1), (FAILED, 1), ("out of memory", 0)):
        number = len(journal.history.trials) + 1
        values = source.ask()
        journal.append("trial", number=number, values=values)
        if reports:
            journal.append("report", number=number, step=2, error_percent=9.0)
        journal.append("end", number=number, status=status, reason="")
        source.tell(journal.history.trials[number])
    assert source.ask() is not None


def test_without_optuna_one_line_says_so(monkeypatch, journal):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        ConfigError, match=r"search.searcher='optuna': the package optuna is not installed; pip"
    ):
        Source(SPACE, 0, journal.history, too_many, lambda *_: None, "optuna")
