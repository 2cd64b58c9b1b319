"""Runs on real Ray Train workers: from start to end, continued, killed, refused, failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from job_helpers import (
    NUM_TEST,
    STEPS_PER_EPOCH,
    Rows,
    Slow,
    assert_same_state,
    tiny_config,
)

from capsdist.config import Config, Launch
from capsdist.errors import CapsdistError, CheckpointError, ConfigError, RunError
from capsdist.launch import RunFolder, RunSummary, launch
from capsdist.statistics import error_interval
from capsdist.train.checkpoint import read_checkpoint
from capsdist.train.metrics import read_metrics
from faults.script import Fault, Script

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(ray_cluster: None, tiny_root: Path, storage: Path) -> tuple[Config, Rows, RunSummary]:
    """A run of 2 epochs on 2 workers that nothing disturbs: 16 steps."""
    config, rows = tiny_config(tiny_root, storage, "whole"), Rows()
    return config, rows, launch(config, display=rows)


def test_a_run_shows_every_row_in_order(whole):
    _, rows, _ = whole
    assert rows[-1]["kind"] == "end"
    (start,) = rows.of("start")
    assert (start["world_size"], start["torch_threads"], start["steps_per_epoch"]) == (2, 1, STEPS_PER_EPOCH)
    assert [row["step"] for row in rows.of("train")] == [3, 6, 8, 9, 12, 15, 16]
    assert [row["num_images"] for row in rows.of("validation")] == [NUM_TEST, NUM_TEST]


def test_a_run_leaves_configuration_metrics_result_and_the_newest_checkpoints(whole):
    config, rows, summary = whole
    run = RunFolder(Path(summary.run_dir))
    assert run.read_config() == config
    assert run.read_result() == summary
    shown = [row for row in rows if row["kind"] in {"start", "train", "validation", "checkpoint", "end"}]
    assert read_metrics(run.path / "metrics.jsonl") == json.loads(json.dumps(shown))
    assert list(run.path.glob("tensorboard/events*"))
    assert sorted(path.name for path in run.path.glob("step_*")) == ["step_00000015", "step_00000016"]
    assert (summary.status, summary.steps) == ("done", 16)
    assert summary.error_percent == rows[-1]["error_percent"]
    assert summary.error_interval_percent == error_interval(summary.error_percent, NUM_TEST)


class Interrupt(Rows):
    """A display that sends a signal to this process at the first row of training after `step`."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__()
        self._number: int | None = number
        self._step = step

    def __call__(self, row: dict) -> None:
        super().__call__(row)
        if self._number and row["kind"] == "train" and row["step"] >= self._step:
            number, self._number = self._number, None
            os.kill(os.getpid(), number)


def test_a_run_stopped_in_mid_epoch_and_killed_later_equals_the_undisturbed_one(whole, tiny_root, tmp_path):
    _, _, undisturbed = whole
    rows, config = Interrupt(signal.SIGTERM, step=3), tiny_config(tiny_root, tmp_path, "stopped")
    stopped = launch(config, display=rows, fault=Slow(0.2))
    run = RunFolder(tmp_path / "stopped")
    assert stopped.status == "stopped"
    assert 3 < stopped.steps < 2 * STEPS_PER_EPOCH
    assert run.read_result() == stopped
    assert run.steps_saved() == stopped.steps
    assert rows[-1]["stopped"] is True

    continued = Rows()
    script = Script([Fault("kill", 1, 14)], tmp_path / "marks", run.path)
    done = launch(config, display=continued, fault=script)
    assert script.reached(0)
    resumed = [row["resumed_step"] for row in continued.of("start")]
    assert resumed[0] == stopped.steps
    # Ray may not have heard of the last checkpoint before the death
    assert resumed[1:] in ([9], [12], [stopped.steps])
    (failure,) = continued.of("failure")
    assert "worker 1: its process died" in failure["message"]
    assert (done.status, done.steps) == ("done", undisturbed.steps)
    assert done.error_percent == undisturbed.error_percent
    assert run.read_result() == done
    assert_same_state(Path(undisturbed.run_dir), run.path)
    steps = [row["step"] for row in read_metrics(run.path / "metrics.jsonl") if row["kind"] == "train"]
    assert steps == sorted(set(steps))
    # the check can fail: one step less is another state
    with pytest.raises(AssertionError):
        assert_same_state(Path(undisturbed.run_dir), run.path, back=1)


def test_a_finished_run_started_again_is_done_at_once(whole):
    config, _, summary = whole
    rows = Rows()
    assert launch(config, display=rows) == summary
    assert rows.of("start") == []


def test_a_changed_configuration_is_refused_before_anything_starts(whole):
    config, _, _ = whole
    changed = config.model_copy(update={"optim": config.optim.model_copy(update={"learning_rate": 0.002})})
    with pytest.raises(
        ConfigError, match=r"train.name='whole': .*optim.learning_rate 0.001 -> 0.002"
    ) as caught:
        launch(changed, display=Rows())
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another_one(whole, tiny_root, storage):
    source = Path(whole[2].run_dir)
    config = tiny_config(tiny_root, storage, "tuned", max_steps=1, init_from=str(source))
    still = config.optim.model_copy(update={"learning_rate": 1e-30, "learning_rate_floor": 0.0})
    rows = Rows()
    launch(config.model_copy(update={"optim": still}), display=rows)
    assert [row["resumed_step"] for row in rows.of("start")] == [0]
    found = read_checkpoint(storage / "tuned/step_00000001").engine.model
    for name, tensor in read_checkpoint(source / "step_00000016").engine.model.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-20)


def test_weights_that_do_not_fit_are_refused_before_ray_starts(whole, tiny_root, storage):
    config = tiny_config(tiny_root, storage, "wide", init_from=whole[2].run_dir)
    wide = config.model.model_copy(update={"num_classes": 11})
    rows = Rows()
    with pytest.raises(
        ConfigError, match=r"train.init_from=.*whole': does not fit the network: .*packed_weig"
    ):
        launch(config.model_copy(update={"model": wide}), display=rows)
    assert [row for row in rows if row["kind"] == "status" and "starting" in row["message"]] == []
    assert not (storage / "wide").exists()


@pytest.mark.slow
def test_a_foreign_error_is_told_in_one_line_and_in_full(tiny_root, storage, tmp_path):
    script = Script([Fault("error", 0, 1)], tmp_path / "marks", Path(storage, "failing"))
    config = tiny_config(tiny_root, storage, "failing", launch=Launch(cpus_per_worker=1, max_failures=0))
    with pytest.raises(
        RunError, match=r"run 'failing' failed: worker 0: RuntimeError: a scripted error at step 1"
    ) as caught:
        launch(config, display=Rows(), fault=script)
    assert "\n" not in str(caught.value)
    story = Path(storage, "failing", "failure.txt")
    assert str(story) in str(caught.value)
    assert "Traceback" in story.read_text()


@pytest.mark.slow
def test_a_run_whose_numbers_are_not_finite_fails_and_the_remedy_works_as_printed(tiny_root, storage):
    config = tiny_config(tiny_root, storage, "infinite", max_steps=1, num_workers=1)
    wild = config.model_copy(update={"optim": config.optim.model_copy(update={"learning_rate": 1e39})})
    rows = Rows()
    with pytest.raises(RunError, match=r"at step 1; start again with a lower --optim.learning-rate than 1e"):
        launch(wild, display=rows)
    run = RunFolder(storage / "infinite")
    assert run.read_result().status == "failed"
    assert rows.of("failure") == []  # another attempt would be vain
    assert not any(b"NaN" in path.read_bytes() for path in run.path.glob("*.json*"))
    assert launch(config, display=Rows()).status == "done"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KB: more than a checkpoint of the tiny network, less than a run of it."""
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a file system")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_is_one_line_and_nothing_is_tried_again(tiny_root, small_disk):
    rows = Rows()
    with pytest.raises(
        CapsdistError, match=r"cannot be written \(.*No space left on device.*make room"
    ) as caught:
        launch(tiny_config(tiny_root, small_disk, "full", num_workers=1), display=rows)
    assert "\n" not in str(caught.value)
    assert len(rows.of("start")) == 1
    assert rows.of("failure") == []
    run = small_disk / "full"
    assert list(run.glob(".partial-*")) == []
    assert all((folder / "manifest.json").exists() for folder in run.glob("step_*"))


@pytest.mark.slow
def test_the_newest_whole_checkpoint_is_taken_and_what_is_passed_over_is_named(whole):
    config, _, summary = whole  # the last test of this run: it does not survive it
    run = Path(summary.run_dir)
    weights = run / "step_00000016" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for name in ("step_00000020", ".partial-step_00000021"):  # as a crash leaves them
        (run / name).mkdir()
    rows = Rows()
    longer = config.model_copy(
        update={"train": config.train.model_copy(update={"epochs": 3, "max_steps": 17})}
    )
    assert launch(longer, display=rows).steps == 17
    assert [row["resumed_step"] for row in rows.of("start")] == [15]
    half, damaged = (row["message"] for row in rows.of("note"))
    assert half == f"warning: passed over {run}/step_00000020: it is half written"
    assert damaged.startswith(f"warning: passed over a checkpoint: checkpoint {run}/step_00000016 is damaged")
    left = sorted(path.name for path in run.iterdir() if path.is_dir())
    assert left == ["step_00000015", "step_00000017", "tensorboard"]
    # all damaged: nothing is begun anew, and restarts would be vain, so there are none
    for weights in run.glob("step_*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    rows = Rows()
    with pytest.raises(CheckpointError, match=r"all checkpoints are damaged \(step_00000015, ") as caught:
        launch(
            config.model_copy(update={"train": config.train.model_copy(update={"epochs": 3})}), display=rows
        )
    assert "\n" not in str(caught.value)
    assert rows.of("start") == rows.of("failure") == []
    assert RunFolder(run).read_result().status == "failed"
    assert RunFolder(run).read_result().reason == str(caught.value)


def test_workers_that_never_come_end_the_wait(tiny_root, storage):
    limits = Launch(cpus_per_worker=2, controller_failure_limit=0, worker_start_timeout_s=3)
    with pytest.raises(
        RunError,
        match=r"train.num_workers=2: .* 2 workers with 2 CPU each in 1 x 3 s, and has 2 CPU and 0 GPU now",
    ):
        launch(tiny_config(tiny_root, storage, "waiting", launch=limits), display=Rows())
