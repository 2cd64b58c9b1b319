"""A run whose data and storage are on S3: killed and continued, refused in time, its secret nowhere."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from job_helpers import TINY_FLAGS, run_job_file, write_tiny
from places import Place
from planted import holding
from safetensors.torch import load
from seaweed import Key

from capsdist.cli import run_job
from capsdist.console import FAILED
from capsdist.runs.retention import checkpoint_name
from capsdist.train.metrics import parse_metrics
from limits import without_progress

pytestmark = pytest.mark.s3
TIMED = {"images_per_s", "step_time_s", "eta_s", "time_s", "seconds", "wall_time_s", "run"}


def train(name: str, cwd: Path, env: dict[str, str]) -> str:
    """Train 16 steps on two workers, by the command line; return what it printed."""
    flags = [
        "--train.epochs=2",
        "--train.num-workers=2",
        "--train.device=cpu",
        "--train.checkpoint-every-steps=3",
    ]
    done = run_job_file("train_mnist.py", *TINY_FLAGS, f"--train.name={name}", *flags, cwd=cwd, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def kill_in_mid_epoch(place: Place, name: str, env: dict[str, str]) -> str:
    """Start the same run with slow steps, and kill its driver's process group after the first checkpoint."""
    storage = [env["CAPSDIST_DATA_ROOT"], env["CAPSDIST_STORAGE"], name]
    command = [sys.executable, str(Path(__file__).with_name("slow_run.py")), *storage]
    with tempfile.TemporaryFile("w+") as log:
        driver = subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        first = f"{place.prefix}/runs/{name}/{checkpoint_name(3)}/manifest.json"
        listed: dict[str, Any] = {}
        while not listed.get("Contents") and driver.poll() is None:
            listed = place.server.client().list_objects_v2(Bucket=place.bucket, Prefix=first)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        log.seek(0)
        return log.read()


def tensors(objects: dict[str, bytes], folder: str) -> dict[str, torch.Tensor]:
    """All weights and optimizer state of a checkpoint."""
    return {
        name: tensor
        for file in ("model.safetensors", "optimizer.safetensors")
        for name, tensor in load(objects[f"{folder}/{file}"]).items()
    }


def without_times(objects: dict[str, bytes], name: str) -> list[dict[str, Any]]:
    rows = parse_metrics(objects[f"runs/{name}/metrics.jsonl"])
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows if row["kind"] != "start"]


def test_a_killed_run_continues_to_the_weights_of_the_undisturbed_one(place: Place, env, tmp_path, short_tmp):
    write_tiny(env["CAPSDIST_DATA_ROOT"])
    printed = [train("whole", tmp_path, env), kill_in_mid_epoch(place, "cut", env)]
    middle = place.objects()
    assert "runs/cut/result.json" not in middle
    assert "runs/cut/.lock" in middle
    printed.append(train("cut", tmp_path, env))

    objects = place.objects()
    last = checkpoint_name(16)
    whole, cut = tensors(objects, f"runs/whole/{last}"), tensors(objects, f"runs/cut/{last}")
    assert whole.keys() == cut.keys()
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []
    earlier = tensors(objects, f"runs/whole/{checkpoint_name(15)}")
    assert any(not torch.equal(whole[name], earlier[name]) for name in whole)  # the check can fail
    starts = [row for row in parse_metrics(objects["runs/cut/metrics.jsonl"]) if row["kind"] == "start"]
    assert [row["resumed_step"] for row in starts] in ([0, 3], [0, 6])  # in the midst of 8 steps
    assert without_times(objects, "cut") == without_times(objects, "whole")

    names = {name.removeprefix("runs/cut/") for name in objects if name.startswith("runs/cut/")}
    files = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    kept = {f"{checkpoint_name(step)}/{file}" for step in (15, 16) for file in files}
    ours = {"config.json", "result.json", "metrics.jsonl", "overview.png", "report.html"}
    assert {name for name in names if not name.startswith("tensorboard/")} - ours - kept <= {
        "", ".validate_storage_marker", "checkpoint_manager_snapshot.json"  # Ray's
    }  # fmt: skip
    assert ours | kept < names
    assert len([name for name in names if name.startswith("tensorboard/events")]) == 2
    stored = json.loads(objects["runs/cut/config.json"])
    assert (stored["data"]["root"], stored["train"]["storage"]) == (f"{place.url}/data", f"{place.url}/runs")
    assert json.loads(objects["runs/cut/result.json"])["run_dir"] == f"{place.url}/runs/cut"

    measured = run_job_file("evaluate.py", f"{place.url}/runs/cut", "--device=cpu", cwd=tmp_path, env=env)
    assert (measured.returncode, without_progress(measured.stderr)) == (0, "")
    assert measured.stdout.startswith(f"{place.url}/runs/cut/{last}: ")
    assert measured.stdout.splitlines()[-1].split()[:2] == printed[-1].splitlines()[-1].split()[:2]

    (tmp_path / "printed").write_text("".join([*printed, measured.stdout]))
    assert any(short_tmp.rglob("*.log"))  # Ray's logs are searched as well
    assert holding(place.server.full.secret_key, [tmp_path, short_tmp], objects) == []


def test_a_prefix_of_odd_characters_is_one_place_to_us_and_to_ray(place: Place, env, tmp_path):
    """A second start finds what the first one left, and nothing lies elsewhere."""
    odd = "a b%20c#[\u00e9]|d"
    write_tiny(env["CAPSDIST_DATA_ROOT"])
    env = env | {"CAPSDIST_STORAGE": f"{place.url}/{odd}"}
    for epochs in (1, 2):
        flags = [f"--train.epochs={epochs}", "--train.num-workers=1", "--train.device=cpu"]
        done = run_job_file("train_mnist.py", *TINY_FLAGS, "--train.name=odd", *flags, cwd=tmp_path, env=env)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "continues after step 8" in done.stdout
    names = place.objects()
    assert {name.partition("/")[0] for name in names} - {""} == {"data", odd}  # "": a folder's mark, Ray's
    assert f"{odd}/odd/{checkpoint_name(16)}/manifest.json" in names


@pytest.fixture
def refused(place: Place, tmp_path: Path, monkeypatch, capsys):
    """Runs a job with this storage; it must fail before Ray starts, with one line, which is returned."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "data")

    def refuse(storage: str, *flags: str) -> str:
        argv = [*TINY_FLAGS, f"--train.storage={storage}", *flags]
        start = time.monotonic()
        assert run_job("A job.", ["mnist_paper"], argv=argv) == FAILED
        assert time.monotonic() - start < 90  # 10 times the limit inside
        shown = capsys.readouterr()
        assert all(line.startswith(("reading all", "trying to write")) for line in shown.out.splitlines())
        [line] = shown.err.splitlines()
        return line

    return refuse


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "cannot list (the secret key is wrong (SignatureDoesNotMatch))"),
        ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "cannot be reached"),
        ("AWS_ENDPOINT_URL", "http://no-such-host.invalid", "check AWS_ENDPOINT_URL"),
    ],
)
def test_a_storage_that_does_not_let_us_in_is_refused(place, refused, monkeypatch, variable, value, reason):
    monkeypatch.setenv(variable, value)
    line = refused(f"{place.url}/runs")
    assert line.startswith(f"error: {place.url}/runs/mnist at ")
    assert reason in line


def test_a_bucket_that_is_not_there_is_refused(refused):
    assert "there is no such bucket" in refused("s3://no-such-bucket/runs")


def test_a_server_that_never_answers_is_refused(place, refused, monkeypatch):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert "does not answer" in (line := refused(f"{place.url}/runs")) or "no answer" in line


def test_a_key_that_may_only_read_is_refused(place, refused, monkeypatch):
    key: Key = place.server.read_only
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key.secret_key)
    assert "cannot write (access denied)" in refused(f"{place.url}/runs")


@pytest.mark.parametrize("job", ["evaluate.py"])
def test_a_run_on_a_server_that_is_away_is_refused_in_time(job, place, tmp_path):
    start = time.monotonic()
    env = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    done = run_job_file(job, f"{place.url}/runs/mnist", cwd=tmp_path, env=env)
    assert time.monotonic() - start < 300  # it ends by itself; imports included
    assert done.returncode == 1
    [line] = without_progress(done.stderr).splitlines()
    assert line.startswith(f"error: {place.url}/runs/mnist at ")


def test_check_warns_of_storage_and_data_and_leaves_nothing(place, monkeypatch, capsys):
    argv = ["--check", f"--data.root={place.url}/data", f"--train.storage={place.url}/runs"]
    assert run_job("A job.", ["mnist_paper"], argv=argv) == 0
    assert "capsdist pack mnist" in capsys.readouterr().err
    assert place.objects() == {}
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert run_job("A job.", ["mnist_paper"], argv=argv) == 0
    assert capsys.readouterr().err.count("SignatureDoesNotMatch") == 2


def test_a_frozen_worker_is_replaced_and_its_temporary_folders_go(place: Place, env, tmp_path):
    write_tiny(env["CAPSDIST_DATA_ROOT"])
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    script = str(Path(__file__).with_name("frozen_run.py"))
    storage = [env["CAPSDIST_DATA_ROOT"], env["CAPSDIST_STORAGE"], "frozen", str(tmp_path / "marks")]
    done = subprocess.run(
        [sys.executable, script, *storage],
        env=env | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    status, steps, *notes = done.stdout.splitlines()
    assert (status, steps) == ("done", "16")
    [note] = [text for text in notes if "does not answer, it is stopped; killed all workers" in text]
    assert "no step for 12 s: worker 0 (process " in note
    assert note.endswith(f"their stacks are in {place.url}/runs/frozen/stacks.txt")
    objects = place.objects()
    assert b"no answer" in objects["runs/frozen/stacks.txt"]
    trained = [
        row["step"] for row in parse_metrics(objects["runs/frozen/metrics.jsonl"]) if row["kind"] == "train"
    ]
    assert trained == [3, 6, 8, 9, 12, 15, 16]
    assert list(temporary.glob("capsdist-*")) == []  # those of the killed worker too
