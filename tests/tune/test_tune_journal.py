"""The journal: nothing whole is lost, wherever it is cut, and nothing half is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capsdist.train.cluster.files import LocalFiles
from capsdist.tune.journal import FAILED, FINISHED, JOURNAL_NAME, RUNNING, STOPPED, History, Journal

EVENTS = [
    ("attempt", {}),
    ("trial", {"number": 1, "values": {"routing.iterations": 3}}),
    ("infeasible", {"values": {"routing.iterations": 99}, "reason": "too many"}),
    ("trial", {"number": 2, "values": {"routing.iterations": 1}}),
    ("report", {"number": 1, "step": 8, "error_percent": 5.5}),
    ("report", {"number": 2, "step": 8, "error_percent": 7.25}),
    ("end", {"number": 2, "status": STOPPED, "reason": ""}),
    ("report", {"number": 1, "step": 16, "error_percent": 4.125}),
    ("end", {"number": 1, "status": FINISHED, "reason": ""}),
    ("attempt", {}),
    ("trial", {"number": 3, "values": {"routing.iterations": 2}}),
]


def written(folder: Path) -> Journal:
    journal = Journal(LocalFiles(folder))
    for event, values in EVENTS:
        journal.append(event, **values)
    return journal


def test_what_is_written_is_read_again(tmp_path):
    first = written(tmp_path)
    again = Journal(LocalFiles(tmp_path))
    assert again.history == first.history
    history = again.history
    assert [trial.status for trial in history.trials.values()] == [FINISHED, STOPPED, RUNNING]
    assert history.reports == [(1, 8, 5.5), (2, 8, 7.25), (1, 16, 4.125)]
    assert (history.trials[1].step, history.trials[1].error_percent) == (16, 4.125)
    assert (history.trials[3].step, history.trials[3].error_percent) == (0, None)
    assert history.trials[1].name == "trial-01"
    assert history.infeasible == [({"routing.iterations": 99}, "too many")]
    assert [attempt["ended_before"] for attempt in history.attempts] == [0, 2]
    assert ([t.number for t in history.running()], [t.number for t in history.ended()]) == ([3], [1, 2])


def test_a_journal_cut_at_any_byte_keeps_all_whole_lines_and_goes_on(tmp_path):
    written(tmp_path)
    path, files = tmp_path / JOURNAL_NAME, LocalFiles(tmp_path)
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        journal = Journal(files)
        expected = History()
        for line in data[:cut].split(b"\n")[:-1]:
            expected.add(json.loads(line))
        assert journal.history == expected
        journal.append("trial", number=9, values={})
        assert Journal(files).history.trials[9].status == RUNNING


def test_the_law_has_teeth(tmp_path):
    """A journal that only appended would glue the next event to the half line before it."""
    path = tmp_path / JOURNAL_NAME
    written(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    with path.open("a") as file:
        file.write(json.dumps({"event": "trial", "number": 9, "values": {}, "time": 0}) + "\n")
    with pytest.raises(json.JSONDecodeError):
        Journal(LocalFiles(tmp_path))


def test_after_a_stop_nothing_more_is_taken_in(tmp_path):
    journal = written(tmp_path)
    before = (tmp_path / JOURNAL_NAME).read_bytes()
    journal.close()
    journal.append("end", number=3, status=FAILED, reason="a consequence of the stop")
    assert journal.history.trials[3].status == RUNNING
    assert (tmp_path / JOURNAL_NAME).read_bytes() == before


def test_wall_clock_is_summed_over_starts():
    history = History()
    for time, event in [(10, "attempt"), (12, "infeasible"), (100, "attempt"), (101.5, "infeasible")]:
        history.add({"event": event, "time": time, "values": {}, "reason": ""})
    assert history.wall_s == 3.5
