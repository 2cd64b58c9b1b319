"""What a person sees while a search is under way."""

from __future__ import annotations

import io

import pytest

from capsdist.tune.journal import Journal
from capsdist.tune.progress import SearchDisplay

HEAD = {
    "kind": "search", "name": "tune-tiny", "space": {"iterations": (1, 3)}, "budget": "2 at a time",
    "max_trials": 4, "total_steps": 32, "grace_steps": 8, "reduction": 2, "ended": 0,
}  # fmt: skip


class Terminal(io.StringIO):
    """Takes what a terminal would."""

    def isatty(self) -> bool:
        return True


def shown(journal: Journal, out: io.StringIO, **head: object) -> str:
    """What two trials look like, one of which is stopped."""
    with SearchDisplay(out) as display:
        display(HEAD | head)
        for number, error in ((1, 5.0), (2, 25.0)):
            journal.append("trial", number=number, values={"routing.iterations": 2 * number - 1})
            display({"kind": "trial_start", "trial": journal.history.trials[number]})
            journal.append("report", number=number, step=8, error_percent=error)
            display({"kind": "trial_report", "trial": journal.history.trials[number]})
        journal.append("end", number=2, status="stopped", reason="")
        display({"kind": "trial_end", "trial": journal.history.trials[2]})
        for n in range(9):
            display({"kind": "infeasible", "values": {"model.class_dim": n}, "reason": "too large"})
        display({"kind": "a row of a later version"})
    return out.getvalue()


def test_plain_lines(journal):
    assert shown(journal, io.StringIO()).splitlines() == [
        "search tune-tiny: up to 4 trials over iterations; 2 at a time",
        "a trial has 32 steps; ASHA keeps one in 2 after 8, 16 steps",
        "trial-01  begins: iterations 1",
        "trial-01  step 8/32  error_percent 5.00",
        "trial-02  begins: iterations 3",
        "trial-02  step 8/32  error_percent 25.00",
        "trial-02  stopped after step 8  error_percent 25.00",
        "infeasible: class_dim 0: too large",
        "infeasible: class_dim 1: too large",
        "infeasible: class_dim 2: too large",
    ]


def test_a_search_that_goes_on_says_so(journal):
    lines = shown(journal, io.StringIO(), ended=2, grace_steps=None).splitlines()
    assert lines[1:3] == ["every trial has 32 steps", "continues: 2 trials have ended already"]


def test_a_terminal_gets_a_table(journal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("RAY_JOB_ID", raising=False)
    text = shown(journal, Terminal())
    assert "trial-01" in text
    assert "1 of 4 trials have ended" in text


@pytest.mark.parametrize("variable", ["RAY_JOB_ID", "TERM"])
def test_jobs_and_dumb_terminals_get_plain_lines(variable, monkeypatch, journal):
    monkeypatch.delenv("RAY_JOB_ID", raising=False)
    monkeypatch.setenv(variable, "dumb")
    out = Terminal()
    SearchDisplay(out)(HEAD | {"kind": "search"})
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("out", [io.StringIO, Terminal])
def test_texts_of_others_are_shown_as_they_are(journal, out, monkeypatch):
    monkeypatch.delenv("RAY_JOB_ID", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    odd, file = "s3://b/x[/y]/a[b]c[bold]/:cat:", out()
    with SearchDisplay(file) as display:
        display(HEAD)
        journal.append("trial", number=1, values={"routing.iterations": 1})
        display({"kind": "trial_start", "trial": journal.history.trials[1]})  # opens the live table
        display({"kind": "note", "message": odd})
        display({"kind": "infeasible", "values": {"model.class_dim": 1}, "reason": odd})
    assert file.getvalue().count(odd) == 2
