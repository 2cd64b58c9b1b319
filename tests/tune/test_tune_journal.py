"""The journal: nothing whole is lost, wherever it is cut, and nothing half is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capsdist.errors import RunError
from capsdist.runs.files import open_files
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
    journal = Journal(open_files(folder))
    for event, values in EVENTS:
        journal.append(event, **values)
    return journal


def test_what_is_written_is_read_again(tmp_path):
    first = written(tmp_path)
    again = Journal(open_files(tmp_path))
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


def test_a_trial_ends_with_whatever_reason(tmp_path):
    journal = written(tmp_path)
    journal.append(
        "end", number=3, status=FAILED, reason="/caf\udce9 is full"
    )  # a file name that is not UTF-8
    warnings = []
    [again] = [
        each for each in Journal(open_files(tmp_path), warnings.append).history.ended() if each.number == 3
    ]
    assert (again.status, again.reason, warnings) == (FAILED, "/caf\\udce9 is full", [])


def test_a_journal_cut_at_any_byte_keeps_all_whole_lines_and_goes_on(tmp_path):
    written(tmp_path)
    path, files = tmp_path / JOURNAL_NAME, open_files(tmp_path)
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        journal = Journal(files)
        expected = History()
        for line in data[:cut].split(b"\n")[:-1]:
            event = json.loads(line)
            del event["crc32"]
            expected.add(event)
        assert journal.history == expected
        journal.append("trial", number=9, values={})
        assert Journal(files).history.trials[9].status == RUNNING


def test_the_check_can_fail(tmp_path):
    """A journal that only appended would glue the next event to the half line before it."""
    path, warnings = tmp_path / JOURNAL_NAME, []
    written(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    with path.open("a") as file:
        file.write(json.dumps({"event": "trial", "number": 9, "values": {}, "time": 0}) + "\n")
    assert 9 not in Journal(open_files(tmp_path), warnings.append).history.trials
    assert len(warnings) == 1


def test_lines_without_a_checksum_as_version_0_1_wrote_them_are_read(tmp_path):
    row = {"event": "trial", "time": 1.5, "number": 1, "values": {"routing.iterations": 3}}
    (tmp_path / JOURNAL_NAME).write_text(json.dumps(row) + "\n")
    assert Journal(open_files(tmp_path)).history.trials[1].values == {"routing.iterations": 3}


def test_a_line_that_has_lost_its_checksum_is_damaged(tmp_path):
    """Its other values may have been changed by what took the checksum away."""
    written(tmp_path)
    path, warnings = tmp_path / JOURNAL_NAME, []
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in lines:
        whole, crc = dict(line), line.pop("crc32")
        path.write_text("".join(json.dumps(each) + "\n" for each in lines))
        Journal(open_files(tmp_path), warnings.append)
        place = lines.index(line) + 1
        assert f"warning: passed over line {place} of {path}: it has no checksum" in warnings, whole
        line["crc32"] = crc
        warnings.clear()


def test_a_journal_of_version_0_1_goes_on_with_checksums(tmp_path):
    row = {"event": "trial", "time": 1.5, "number": 1, "values": {"routing.iterations": 3}}
    (tmp_path / JOURNAL_NAME).write_text(json.dumps(row) + "\n")
    warnings: list[str] = []
    journal = Journal(open_files(tmp_path), warnings.append)
    journal.append("attempt")
    journal.append("end", number=1, status=FINISHED, reason="")
    again = Journal(open_files(tmp_path), warnings.append)
    assert (again.history.trials[1].values, again.history.trials[1].status) == (row["values"], FINISHED)
    assert warnings == []


@pytest.mark.parametrize("damage", ["time", "crc32"])
def test_a_damaged_start_of_today_takes_no_trial_of_version_0_1_away(tmp_path, damage):
    """Trial 1 is of version 0.1; the line in which today's first start has its checksum is damaged."""
    old = [
        {"event": "attempt", "time": 1.0},
        {"event": "trial", "time": 1.5, "number": 1, "values": {"routing.iterations": 3}},
        {"event": "report", "time": 1.6, "number": 1, "step": 8, "error_percent": 5.5},
    ]
    path = tmp_path / JOURNAL_NAME
    path.write_text("".join(json.dumps(row) + "\n" for row in old))
    journal = Journal(open_files(tmp_path))
    for event, values in (("attempt", {}), *EVENTS[3:4]):
        journal.append(event, **values)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    del lines[len(old)][damage]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    warnings: list[str] = []
    again = Journal(open_files(tmp_path), warnings.append)
    assert again.history.trials == journal.history.trials
    assert [warning.split(":")[1] for warning in warnings] == [f" passed over line {len(old) + 1} of {path}"]


DAMAGED = {
    "a flipped digit": (b"5.5", b"4.5", "it was changed: its checksum is another"),
    "not UTF-8": (b'"report"', b'"rep\xffrt"', "it is not UTF-8 at byte"),
    "a key twice": (b'"step": 8', b'"step": 8, "step": 8', "it has the key 'step' twice"),
    "not a number": (b"5.5", b"NaN", "it has the number NaN, which is not finite"),
    "nested": (b"5.5", b"[" * 100_000, "it is nested too deeply"),
    "a list": (b'{"event": "report"', b'[{"event": "report"', "it is not JSON"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_line_is_passed_over_by_name_and_stays_when_the_search_goes_on(tmp_path, kind):
    old, new, reason = DAMAGED[kind]
    written(tmp_path)
    path, warnings = tmp_path / JOURNAL_NAME, []
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(old, new, 1)
    path.write_bytes(b"".join(lines))
    journal = Journal(open_files(tmp_path), warnings.append)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: passed over line 5 of {path}: {reason}")
    assert journal.history.reports == [(2, 8, 7.25), (1, 16, 4.125)]
    assert [trial.status for trial in journal.history.trials.values()] == [FINISHED, STOPPED, RUNNING]
    journal.append("end", number=3, status=FAILED, reason="")
    assert path.read_bytes().startswith(b"".join(lines))
    assert Journal(open_files(tmp_path)).history.trials[3].status == FAILED


def test_a_trial_whose_line_is_damaged_is_not_known_and_its_number_is_not_given_again(tmp_path):
    written(tmp_path)
    path, warnings = tmp_path / JOURNAL_NAME, []
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = b"garbage\n"
    path.write_bytes(b"".join(lines[:-1]))
    history = Journal(open_files(tmp_path), warnings.append).history
    assert list(history.trials) == [1]
    assert history.next_number() == 3
    assert [warning.partition("journal.jsonl: ")[2] for warning in warnings] == [
        "it is not JSON (line 1: Expecting value)",
        "it is of trial 2, which has not begun",
        "it is of trial 2, which has not begun",
    ]
    assert Journal(open_files(tmp_path), taken=[7]).history.next_number() == 8


@pytest.mark.parametrize(
    "change",
    [
        {"event": "begin"}, {"number": 0}, {"number": True}, {"number": "1"}, {"time": -1},
        {"status": "done"}, {"reason": None}, {"more": 1},
    ],
)  # fmt: skip
def test_an_event_of_another_shape_is_passed_over(tmp_path, change):
    path, warnings = tmp_path / JOURNAL_NAME, []
    begin = {"event": "trial", "time": 1, "number": 1, "values": {}}
    end = {"event": "end", "time": 2, "number": 1, "status": "finished", "reason": ""}
    path.write_text(json.dumps(begin) + "\n" + json.dumps(end | change) + "\n")
    assert Journal(open_files(tmp_path), warnings.append).history.trials[1].status == RUNNING
    assert len(warnings) == 1


@pytest.mark.parametrize(
    "values",
    [{"model.kind": 1}, {"routing.iterations": 1.5}, {"routing.iterations": True}, {"model.class_dim": -1}],
)
def test_a_point_that_no_space_has_is_passed_over(tmp_path, values):
    begin = {"event": "trial", "time": 1, "number": 1, "values": values}
    (tmp_path / JOURNAL_NAME).write_text(json.dumps(begin) + "\n")
    warnings = []
    assert Journal(open_files(tmp_path), warnings.append).history.trials == {}
    assert len(warnings) == 1


def test_a_folder_in_its_place_is_refused_in_one_line(tmp_path):
    (tmp_path / JOURNAL_NAME).mkdir()
    with pytest.raises(RunError) as caught:
        Journal(open_files(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path / JOURNAL_NAME} is not a regular file; move it away, and the search tries its trials anew"
    )


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
