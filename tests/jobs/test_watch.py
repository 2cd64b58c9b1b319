"""A worker that was frozen is found, told of, and the run goes on from the newest checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_helpers import FrozenAtStart, Rows, tiny_config

from capsdist.config import Launch
from capsdist.launch import launch
from capsdist.train.metrics import read_metrics
from faults.script import Fault, Script, read_marks

# Workers take a second from the moment they are watched to the first step; on a busy machine the watchdog may
# strike before that as well, which costs an attempt.
LIMIT_S = 12.0


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_with_a_frozen_worker_says_so_and_ends_with_all_its_steps(tiny_root, tmp_path, num_workers):
    fault = Script([Fault("frozen_worker", num_workers - 1, 7)], tmp_path / "marks", tmp_path / "frozen-run")
    limits = Launch(cpus_per_worker=1, max_failures=9, step_timeout_s=LIMIT_S)
    rows = Rows()
    config = tiny_config(tiny_root, tmp_path, "frozen-run", launch=limits, num_workers=num_workers)
    summary = launch(config, display=rows, fault=fault)

    assert (summary.status, summary.steps) == ("done", 16)
    run = Path(summary.run_dir)
    [mark] = read_marks(tmp_path / "marks")
    frozen = (
        f"warning: no step for {LIMIT_S:g} s: worker {num_workers - 1} (process {mark.pid} on {mark.host})"
    )
    [note] = [row["message"] for row in rows.of("note") if row["message"].startswith(frozen)]
    assert "does not answer, it is stopped; killed all workers" in note
    assert note.endswith(f"their stacks are in {run}/stacks.txt")
    assert len(rows.of("failure")) == len(rows.of("start")) - 1 >= 1
    assert rows.of("start")[-1]["resumed_step"] >= 3
    steps = [row["step"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 16
    stacks = (run / "stacks.txt").read_text()
    assert stacks.count("no answer") == 1
    assert stacks.count("most recent call first") >= num_workers - 1
    if num_workers == 2:  # where the other one waits: in a step, or for the answer whether to stop
        assert "train_step" in stacks or "capsdist/launch/signals.py" in stacks


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_freezes_before_it_has_read_anything_is_found(tiny_root, tmp_path):
    """The only one of the run: no other waits for it."""
    fault = FrozenAtStart(tmp_path / "frozen-start" / "config.json", tmp_path / "mark")
    limits = Launch(cpus_per_worker=1, max_failures=9, step_timeout_s=LIMIT_S)
    rows = Rows()
    summary = launch(
        tiny_config(tiny_root, tmp_path, "frozen-start", launch=limits, num_workers=1),
        display=rows,
        fault=fault,
    )
    assert (summary.status, summary.steps) == ("done", 16)
    frozen = f"worker 0 (process {fault.mark.read_text()} on "
    [note] = [row["message"] for row in rows.of("note") if frozen in row["message"]]
    assert "does not answer, it is stopped; killed all workers" in note


def test_a_process_that_has_the_number_of_a_worker_is_let_alone():
    from capsdist.launch import watch

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started = watch._started(other.pid)
        assert started is not None
        stranger = watch.WorkerProcess(0, other.pid, started - 1, "here", "node", "/nonexistent")
        [found] = watch._end_here([stranger])
        assert (found.state, found.stacks) == (None, "")
        assert other.poll() is None
        os.kill(other.pid, signal.SIGSTOP)
        while watch._state(other.pid) != "T":
            time.sleep(0.01)
        worker = watch.WorkerProcess(0, other.pid, started, "here", "node", "/nonexistent")
        [found] = watch._end_here([worker])
        assert (found.state, found.stacks) == ("T", "")
        assert other.wait() == -signal.SIGKILL
