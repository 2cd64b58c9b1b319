"""The run's record: line by line on disk, single-valued after a restart, also for TensorBoard."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from capsdist.config import Config
from capsdist.runs.files import open_files
from capsdist.runs.record import RunRecord, open_record
from capsdist.train.metrics import read_metrics


def recording(folder: Path) -> AbstractContextManager[RunRecord]:
    return open_record(open_files(folder), Config(), print)


def start(resumed_step: int) -> dict[str, Any]:
    return {"kind": "start", "step": resumed_step, "resumed_step": resumed_step}


def train(step: int, loss: float = 0.5) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": loss, "error_percent": 3.0}


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """A scalar curve as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    return [(event.step, round(event.value, 6)) for event in events.Scalars(tag)]


def test_a_row_is_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    with recording(tmp_path / "run") as write:
        for row in (start(0), train(1)):
            write(row)
            assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1]) == row


def test_a_resumed_run_drops_what_it_writes_again(tmp_path: Path) -> None:
    with recording(tmp_path) as write:
        for row in (start(0), train(5, 0.9), train(10, 0.8), train(15, 0.7)):
            write(row)
    second = int(time.time())
    while int(time.time()) == second:  # names of TensorBoard's files begin with it, and decide their order
        time.sleep(0.01)
    with recording(tmp_path) as write:
        for row in (
            start(10),
            train(15, 0.6),
            {"kind": "validation", "step": 15, "error_percent": 2.0, "loss": 0.4},
        ):
            write(row)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("start", 0), ("train", 5), ("train", 10), ("start", 10), ("train", 15), ("validation", 15),
    ]  # fmt: skip
    expected = [(5, 0.9), (10, 0.8), (15, 0.6)]
    assert [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"] == expected
    assert curve(tmp_path, "train/loss") == expected
    assert curve(tmp_path, "validation/error_percent") == [(15, 2.0)]


def test_a_run_that_begins_anew_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    for loss in (0.9, 0.1):
        with recording(tmp_path) as write:
            for row in (start(0), train(1, loss)):
                write(row)
    assert [row.get("loss") for row in read_metrics(tmp_path / "metrics.jsonl")] == [None, None, 0.1]


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path: Path) -> None:
    with recording(tmp_path) as write:
        write(start(0))
        write(train(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    with recording(tmp_path) as write:
        write(start(1))
    assert [row["kind"] for row in read_metrics(tmp_path / "metrics.jsonl")] == ["start", "train", "start"]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_are_not_finite_become_null(tmp_path: Path, value: float) -> None:
    with recording(tmp_path) as write:
        write(start(0))
        write(train(1) | {"grad_norm": value})
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["grad_norm"] is None


def test_a_run_without_a_record_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []
