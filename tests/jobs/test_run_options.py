"""Loggers, traces and dry runs on real Ray Train workers."""

from __future__ import annotations

import importlib.util
import io
import json
import os
from pathlib import Path

import pytest
from job_helpers import TINY_FLAGS, Rows, run_job_file, tiny_config

from capsdist.config import Launch
from capsdist.errors import RunError
from capsdist.launch import launch
from capsdist.train.display import Display
from capsdist.train.phases import PHASES
from faults.script import Fault, Script
from logger_classes import LOGGER_CLASSES


@pytest.mark.slow
def test_a_job_writes_traces_and_logs_to_classes_of_the_user_and_where_installed_to_weights_and_biases(
    tiny_root: Path, tmp_path: Path, short_tmp: Path
) -> None:
    installed = ["wandb"] if importlib.util.find_spec("wandb") else []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own_loggers.py").write_text(LOGGER_CLASSES)
    env = os.environ | {"RAY_TMPDIR": str(short_tmp), "PYTHONPATH": str(tmp_path / "mine")}
    flags = [*TINY_FLAGS, f"--data.root={tiny_root}", "--train.epochs=1", "--train.device=cpu"]
    flags += ["--train.num-workers=2", "--train.profile=2"]
    loggers = ["--train.loggers", "jsonl", "own_loggers:Lines", "own_loggers:Failing", *installed]
    done = run_job_file(
        "train_mnist.py", *flags, "--train.name=logged", *loggers, cwd=tmp_path,
        env=env | {"WANDB_MODE": "offline"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    [warning] = [line for line in done.stdout.splitlines() if "warning" in line]
    assert warning == (
        "warning: logger 'own_loggers:Failing' failed and is left out from now on (OSError: no log today)"
    )
    run = tmp_path / "runs/logged"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = (run / "own.txt").read_text().splitlines()
    assert logged == [f"{row['kind']} {row['step']}" for row in rows]
    records = list(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(records) == len(installed)
    assert all(b"validation/error_percent" in each.read_bytes() for each in records)
    assert not (run / "tensorboard").exists()
    for rank in range(2):
        events = json.loads((run / f"profile/rank-{rank}.json").read_bytes())["traceEvents"]
        assert set(PHASES) <= {event["name"] for event in events}


def test_a_logger_that_does_not_exist_is_refused_before_ray_starts(tmp_path: Path) -> None:
    done = run_job_file("train_mnist.py", "--train.loggers", "csv", "no_module:X", cwd=tmp_path)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith("error: train.loggers='csv': is not a logger; choose one of jsonl, tensorboard,")
    assert second.startswith("error: train.loggers='no_module:X': cannot be imported")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_dry_run_tells_what_steps_take_and_leaves_nothing_behind(tiny_root: Path, tmp_path: Path) -> None:
    rows, printed = Rows(), io.StringIO()
    display = Display(printed)

    def show(row: dict[str, object]) -> None:
        rows(row)
        display(row)

    summary = launch(tiny_config(tiny_root, tmp_path, "dry", dry_run=5), display=show)
    assert (summary.status, summary.steps, summary.error_percent) == ("done", 5, None)
    [phases] = rows.of("phases")
    assert (phases["step"], phases["num_steps"], list(phases["seconds"])) == (5, 4, list(PHASES))
    assert rows.of("validation") == rows.of("checkpoint") == []
    lines = printed.getvalue().splitlines()
    assert [line.split()[0] for line in lines[-7:-1]] == ["phase", *PHASES, "step"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_dry_run_that_fails_leaves_nothing_behind(tiny_root: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    script = Script([Fault("error", 0, 2)], tmp_path / "marks", tmp_path / "runs/dry")
    once = Launch(cpus_per_worker=1, max_failures=0)
    rows = Rows()
    with pytest.raises(
        RunError, match=r"the dry run failed: worker 0: RuntimeError: a scripted error at step 2"
    ):
        launch(
            tiny_config(tiny_root, tmp_path / "runs", "dry", launch=once, dry_run=5),
            display=rows,
            fault=script,
        )
    assert any("Traceback" in row["message"] for row in rows.of("note"))
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_job_prints_what_the_steps_of_a_dry_run_take(
    tiny_root: Path, tmp_path: Path, short_tmp: Path
) -> None:
    flags = [*TINY_FLAGS, f"--data.root={tiny_root}", "--train.device=cpu", "--train.dry-run=3"]
    env = os.environ | {"RAY_TMPDIR": str(short_tmp)}
    done = run_job_file("train_mnist.py", *flags, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[-7:-1]] == ["phase", *PHASES, "step"]
    assert list((tmp_path / "runs").iterdir()) == []
