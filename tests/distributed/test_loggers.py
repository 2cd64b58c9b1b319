"""Loggers: a class of the user by import path, TensorBoard, Weights & Biases, MLflow's local store."""

from __future__ import annotations

import importlib.util
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_run import losses, run_small, small_config

from capsdist.config import Config
from capsdist.errors import Problem
from capsdist.launch.preflight import all_problems
from capsdist.runs.files import open_files
from capsdist.runs.loggers import names
from capsdist.runs.record import open_record
from capsdist.runs.rundir import changed_fields
from logger_classes import LOGGER_CLASSES


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user, outside the repository."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "own_loggers.py").write_text(LOGGER_CLASSES)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_loggers", raising=False)
    return "own_loggers"


def logged(
    config: Config, run: Path, warnings: list[str], resume_from: str | None = None, stop_at: int | None = None
) -> list[dict[str, Any]]:
    """Run `config` with its loggers in the folder `run`; return the events."""
    with open_record(open_files(run), config, warnings.append) as record:
        start = run / resume_from if resume_from else None
        return run_small(config, run, start, stop_at, record=record)


def test_a_logger_of_the_user_is_one_class(own: str, shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, max_steps=2, loggers=(f"{own}:Lines", f"{own}:Least"))
    assert all_problems(config) == []
    warnings: list[str] = []
    rows = logged(config, tmp_path / "run", warnings)
    lines = (tmp_path / "run/own.txt").read_text().splitlines()
    assert lines == [f"{row['kind']} {row['step']}" for row in rows]
    assert warnings == []
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(("shape", "method"), [
    ("Failing", "log"), ("Init", "init"), ("Image", "image"), ("Close", "close"),
])  # fmt: skip
def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(
    own: str, shape: str, method: str, shapes: Path, tmp_path: Path
) -> None:
    config = small_config(shapes, max_steps=3, loggers=(f"{own}:{shape}", f"{own}:Lines"))
    warnings: list[str] = []
    rows = logged(config, tmp_path / "run", warnings)
    assert warnings == [
        f"warning: logger '{own}:{shape}' failed and is left out from now on (OSError: no {method} today)"
    ]
    assert len((tmp_path / "run/own.txt").read_text().splitlines()) == len(rows)
    assert losses(rows) == losses(run_small(config, tmp_path / "plain"))


@pytest.mark.parametrize(("name", "reason"), [
    ("csv", "is not a logger; choose one of jsonl, tensorboard, wandb, mlflow, or an import path"),
    ("no_such_module:X", "cannot be imported (No module named 'no_such_module')"),
    ("own_loggers:NUMBER", "is a int, not a type"),
    ("own_loggers:NoLogger", "lacks image and flush and close; inherit from capsdist.runs.loggers.Logger"),
])  # fmt: skip
def test_what_is_no_logger_is_refused_before_anything_starts(own: str, name: str, reason: str) -> None:
    [problem] = all_problems(Config(train={"loggers": ("jsonl", name)}))  # type: ignore[arg-type]
    assert str(problem).startswith(f"train.loggers={name!r}: ")
    assert reason in str(problem)


def test_a_logger_is_named_once() -> None:
    [problem] = all_problems(Config(train={"loggers": ("jsonl", "jsonl")}))  # type: ignore[arg-type]
    assert str(problem) == "train.loggers='jsonl': is named twice; name it once"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    module = sys.modules[names.find_logger(name).__module__]
    monkeypatch.setattr(module, "find_spec", lambda wanted: None if wanted == name else find(wanted))
    [problem] = all_problems(Config(train={"loggers": (name,)}))  # type: ignore[arg-type]
    assert f"the package {name} is not installed; pip install 'capsdist[{name}]'" in str(problem)


def test_mlflow_needs_a_store_where_a_run_lies_in_object_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    config = Config(train={"loggers": ("mlflow",), "storage": "s3://bucket/runs"})  # type: ignore[arg-type]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert [problem.fix for problem in names.logger_problems(config)] == [
        "set MLFLOW_TRACKING_URI, or leave it out"
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert list[Problem](names.logger_problems(config)) == []


def test_a_run_of_an_earlier_version_has_the_default_and_loggers_may_change(shapes: Path) -> None:
    config = small_config(shapes)
    stored = config.model_dump(mode="json")
    del stored["train"]["loggers"]
    assert Config.model_validate(stored).train.loggers == ("jsonl", "tensorboard")
    assert changed_fields(config, small_config(shapes, loggers=("wandb",))) == {}


def test_tensorboard_has_hyperparameters_and_a_picture_at_each_validation(
    shapes: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged(small_config(shapes, max_steps=8), tmp_path, warnings := [])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert warnings == []
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert "_hparams_/session_start_info" in events.summary_metadata
    pictures = events.Images("reconstructions")
    assert [(each.step, each.height, each.width) for each in pictures] == [(4, 18, 72), (8, 18, 72)]
    assert {"train/margin_loss", "train/reconstruction_loss", "validation/loss"} < set(
        events.Tags()["scalars"]
    )


def test_a_network_without_a_decoder_has_no_picture(shapes: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged(small_config(shapes, kind="baseline_cnn", max_steps=1), tmp_path, warnings := [])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert (events.Tags()["images"], warnings) == ([], [])


def history(folder: Path, name: str) -> dict[int, float]:
    """The values of `name` by step in the records of an offline run: the log format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    [content] = [path.read_bytes() for path in folder.glob("run-*.wandb")]
    at, part, found = 7, b"", {}
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        part += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            row = Record.FromString(part).history
            values = {".".join(item.nested_key) or item.key: item.value_json for item in row.item}
            if name in values:
                found[row.step.num] = float(values[name])
            part = b""
    return found


def test_weights_and_biases_goes_on_in_the_same_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = small_config(shapes, max_steps=8, checkpoint_every_steps=4, loggers=("wandb",))
    warnings: list[str] = []
    second = int(time.time())
    rows = [row for row in logged(config, tmp_path, warnings, stop_at=4) if row["kind"] == "train"]
    while int(time.time()) == second:  # the names of its folders have seconds
        time.sleep(0.01)
    again = logged(config, tmp_path, warnings, resume_from="step-0004")
    rows += [row for row in again if row["kind"] == "train"]
    assert warnings == []
    first, rest = folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    for folder, found in ((first, rows[:4]), (rest, rows[4:])):
        assert history(folder, "train/loss") == dict(enumerate(losses(found), 1 if folder == first else 5))
        assert list(history(folder, "validation/error_percent")) == [4 if folder == first else 8]
        assert list(folder.glob("files/media/images/reconstructions_*.png"))
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1
    logged(config, tmp_path, warnings)  # begins anew
    assert len({path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")}) == 2


def test_mlflow_goes_on_in_the_same_run_and_no_step_is_doubled(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = small_config(shapes, max_steps=8, checkpoint_every_steps=2, loggers=("mlflow",))
    warnings: list[str] = []
    tmp_path /= "small"
    rows = logged(config, tmp_path, warnings, stop_at=6)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("capsdist")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("small", "KILLED")
    rows = rows[:-1] + logged(config, tmp_path, warnings, resume_from="step-0002")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.kind"] == "capsnet"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    found = {metric.step: metric.value for metric in history}
    assert len(history) == len(found) == 8
    assert found == {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}
    assert client.list_artifacts(run.info.run_id, "images")
    assert warnings == []
