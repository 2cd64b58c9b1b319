"""What a killed search kept is told from its files, and the kill reaches every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from capsdist.bench.searching import Files, kept, kill_tree
from capsdist.errors import RunError

BEFORE: list[dict[str, Any]] = [
    {"event": "attempt"},
    {"event": "trial", "number": 1},
    {"event": "infeasible", "reason": "too large"},
    {"event": "report", "number": 1, "step": 4},
    {"event": "trial", "number": 2},
    {"event": "end", "number": 1, "status": "finished"},
    {"event": "report", "number": 2, "step": 4},
]
LATER: list[dict[str, Any]] = [
    {"event": "attempt"},
    {"event": "report", "number": 2, "step": 8},
    {"event": "end", "number": 2, "status": "finished"},
]
STARTS = {1: [0], 2: [0]}


def lost_and_again(after: list[dict[str, Any]], starts: dict[int, list[int]]) -> tuple[int, int]:
    found = kept(BEFORE, after, STARTS, starts)
    return found["trials_lost"], found["trials_run_again"]


def test_a_search_that_went_on_lost_nothing() -> None:
    found = kept(BEFORE, BEFORE + LATER, STARTS, {1: [0], 2: [0, 4]})
    assert found == {
        "trials_lost": 0,
        "trials_run_again": 0,
        "ended_before_kill": 1,
        "under_way": [{"trial": 2, "step": 4, "resumed_step": 4}],
    }


@pytest.mark.parametrize(
    ("after", "starts", "expected"),
    [
        (LATER, {1: [0], 2: [0]}, (1, 0)),  # a new journal
        ([*BEFORE, {"event": "end", "number": 1, "status": "failed"}], STARTS, (0, 1)),
        ([*BEFORE, {"event": "report", "number": 1, "step": 8}], STARTS, (0, 1)),
        (BEFORE + LATER, {1: [0, 4], 2: [0, 4]}, (0, 1)),  # its run was started again
        ([event for event in BEFORE if event["event"] != "end"] + LATER, STARTS, (1, 0)),
    ],
)
def test_what_is_lost_or_run_again_is_counted(after, starts, expected) -> None:
    assert lost_and_again(after, starts) == expected


def test_files_are_read_as_they_lie(tmp_path: Path) -> None:
    files = Files(tmp_path)
    assert (files.events(), files.starts()) == ([], {})
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in BEFORE))
    run = tmp_path / "trials" / "trial-07"
    run.mkdir(parents=True)
    rows = [
        {"kind": kind, "step": step, "epoch": 0.0, "resumed_step": step}
        for kind, step in (("start", 0), ("train", 2), ("start", 3))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (files.events(), files.starts()) == (BEFORE, {7: [0, 3]})


def test_a_line_that_is_being_written_is_no_event_yet_and_damage_is_one_line(tmp_path: Path) -> None:
    files, journal = Files(tmp_path), tmp_path / "journal.jsonl"
    journal.write_text(json.dumps(BEFORE[0]) + '\n{"event": "tri')
    assert files.events() == BEFORE[:1]
    journal.write_text("[\n")
    with pytest.raises(RunError, match=r"journal.jsonl, line 1 is not JSON .*; measure again"):
        files.events()
    (tmp_path / "result.json").write_text("NaN")
    with pytest.raises(RunError, match=r"result.json has the number NaN.*; measure again"):
        files.result()


def test_a_kill_reaches_what_a_process_has_started(tmp_path: Path) -> None:
    leaf = f"import os, time; open({str(tmp_path / 'leaf')!r}, 'w').write(str(os.getpid())); time.sleep(99)"
    stem = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {leaf!r}], start_new_session=True)"
    with subprocess.Popen([sys.executable, "-c", stem]) as process:
        while not ((path := tmp_path / "leaf").exists() and path.read_text()):
            time.sleep(0.01)
        both = [process.pid, int(path.read_text())]
        assert [alive(pid) for pid in both] == [True, True]
        kill_tree(process.pid)
        assert [alive(pid) for pid in both] == [False, False]


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for has ended."""
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_process_that_has_ended_needs_no_kill() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    kill_tree(process.pid)
    assert alive(os.getpid())
