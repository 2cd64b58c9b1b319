"""Jobs as a user starts them: `python jobs/X.py` from any folder, each with a Ray of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from job_helpers import NUM_TEST, ROOT, STEPS_PER_EPOCH, TINY_FLAGS, run_job_file, write_tiny

from capsdist.analysis.evaluation import read_evaluation
from capsdist.cli import parse_command
from capsdist.config import PRESETS
from capsdist.config.presets import affnist, emnist, mnist_ablation, multimnist, smallnorb, svhn
from capsdist.runs.rundir import RunFolder
from capsdist.train.loop import run_training
from capsdist.train.metrics import read_metrics
from limits import PATIENCE_S, without_progress


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a packed data set in it."""
    folder = tmp_path_factory.mktemp("place")
    write_tiny(folder / "data")
    return folder


@pytest.fixture
def env(short_tmp: Path) -> dict[str, str]:
    return {**os.environ, "RAY_TMPDIR": str(short_tmp), "COLUMNS": "100"}


TRAIN = ("train_mnist.py", *TINY_FLAGS, "--train.name=first", "--train.epochs=1", "--train.device=cpu")


def test_train_evaluate_again_and_change(place, env, short_tmp):
    temporary = short_tmp / "t"
    temporary.mkdir()
    env = {name: value for name, value in env.items() if name != "RAY_TMPDIR"} | {"TMPDIR": str(temporary)}
    trained = run_job_file(*TRAIN, cwd=place, env=env)
    # Ray's files are where only this user can go
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in temporary.glob("capsdist-*"))
    assert not (temporary / "ray").exists()
    assert (trained.returncode, trained.stderr) == (0, "")
    lines = trained.stdout.splitlines()
    assert len(lines) < 20, trained.stdout  # Ray's own output does not drown ours
    assert lines[-1].startswith("error_percent ")
    figure = " ".join(lines[-1].split()[:2])
    run = place / "runs" / "first"
    assert (run / "overview.png").stat().st_size > 10_000
    assert (run / "report.html").read_text().count("<figure") > 0
    assert RunFolder(run).read_result().steps == STEPS_PER_EPOCH

    measured = run_job_file("evaluate.py", str(run), "--device=cpu", "--batch-size=7", cwd=place)
    assert (measured.returncode, without_progress(measured.stderr)) == (0, "")
    assert measured.stdout.splitlines()[-1].startswith(f"{figure}  (95 % interval ")
    assert measured.stdout.splitlines()[-1].endswith(f", {NUM_TEST} images)")
    assert read_evaluation(run).num_images == NUM_TEST

    again = run_job_file(*TRAIN, cwd=place, env=env)
    assert (again.returncode, again.stderr) == (0, "")
    assert "done already" in again.stdout
    assert list(temporary.glob("capsdist-*")) == []
    assert again.stdout.splitlines()[-1] == lines[-1]

    changed = run_job_file(*TRAIN, "--loss.m-plus=0.8", cwd=place, env=env)
    assert (changed.returncode, without_progress(changed.stdout)) == (2, "")
    assert changed.stderr.startswith(
        "error: train.name='first': this run has another configuration: loss.m_plus 0.9 -> 0.8"
    )


def test_evaluate_on_another_split_and_its_errors(place, tmp_path):
    [checkpoint] = place.glob("runs/first/step_*")
    split = place / "data" / "tiny" / "train"
    measured = run_job_file("evaluate.py", str(checkpoint), "--split", str(split), cwd=tmp_path)
    assert measured.returncode == 0
    assert "92 images" in measured.stdout.splitlines()[-1]
    missing = run_job_file("evaluate.py", str(checkpoint), "--split", "nowhere", cwd=tmp_path)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert without_progress(missing.stderr).startswith("error: ")
    empty = run_job_file("evaluate.py", str(tmp_path), cwd=tmp_path)
    assert empty.returncode == 1
    assert len(without_progress(empty.stderr).splitlines()) == 1
    best = run_job_file("evaluate.py", str(place / "runs" / "first"), "--best", cwd=tmp_path)
    assert (best.returncode, without_progress(best.stderr)) == (0, "")
    assert best.stdout.startswith(f"{checkpoint}: ")


def processes_below(tmp: Path) -> list[str]:
    """Command lines of processes that belong to a Ray below `tmp`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environ = (folder / "environ").read_bytes()
        except OSError:
            continue  # it has ended
        if f"RAY_TMPDIR={tmp}".encode() in environ and int(folder.name) != os.getpid():
            found.append(line)
    return found


def all_end(tmp: Path) -> None:
    """Return once no process belongs to a Ray below `tmp`; the last ones end a moment after their driver."""
    limit = time.monotonic() + PATIENCE_S
    while (left := processes_below(tmp)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert left == []


def forever(name: str) -> list[str | Path]:
    """A run that only a signal ends, without a checkpoint before."""
    return [
        sys.executable, ROOT / "jobs" / TRAIN[0], *TRAIN[1:], f"--train.name={name}",
        "--train.epochs=100000", "--train.checkpoint-every-steps=1000000", "--train.num-workers=2",
        "--train.validate-every-steps=1000000",
    ]  # fmt: skip


def wait_for_rows(run: RunFolder, job: subprocess.Popen) -> None:
    """Return once the run has written three rows, or has ended."""
    while len(read_metrics(run.path / "metrics.jsonl")) < 3 and job.poll() is None:
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_a_run_cleanly(place, env, number):
    tmp = Path(env["RAY_TMPDIR"], str(int(number)))
    tmp.mkdir()
    job = subprocess.Popen(
        forever(f"stopped-{number}"),
        cwd=place,
        env=env | {"RAY_TMPDIR": str(tmp)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = RunFolder(place / "runs" / f"stopped-{number}")
    wait_for_rows(run, job)
    assert run.steps_saved() == 0
    job.send_signal(number)
    printed, errors = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 130
    assert "stopping: a last checkpoint" in printed
    assert run.steps_saved() > 0
    assert (run.read_result().status, run.read_result().steps) == ("stopped", run.steps_saved())
    assert errors == f"stopped: the same command goes on from step {run.steps_saved():,}\n"
    all_end(tmp)


@pytest.mark.slow
def test_a_closed_terminal_ends_a_run_with_a_last_checkpoint(place, env):
    """The kernel sends SIGHUP to all processes of the terminal, Ray's too, and every write to it fails."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(place)
        command = [str(word) for word in forever("hung-up")]
        os.execve(command[0], command, env)
    reader = threading.Thread(target=drain, args=(terminal,), daemon=True)
    reader.start()
    run = RunFolder(place / "runs" / "hung-up")
    while len(read_metrics(run.path / "metrics.jsonl")) < 3:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.1)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert run.steps_saved() > 0
    assert (run.read_result().status, run.read_result().steps) == ("stopped", run.steps_saved())


def drain(terminal: int) -> None:
    """Read what is written to a terminal, so that nobody waits."""
    with contextlib.suppress(OSError):
        while select.select([terminal], [], [], 1.0)[0] == [] or os.read(terminal, 4096):
            pass


def test_sigterm_while_ray_starts_says_so(place, env):
    tmp = Path(env["RAY_TMPDIR"], "early")
    tmp.mkdir()
    job = subprocess.Popen(
        forever("early"),
        cwd=place,
        env=env | {"RAY_TMPDIR": str(tmp)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(tmp.glob("ray/session_*/logs")) and job.poll() is None:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=PATIENCE_S)
    assert (job.returncode, errors) == (130, "stopped: the same command goes on from step 0\n")
    assert RunFolder(place / "runs" / "early").read_result().status == "stopped"
    all_end(tmp)


ELSEWHERE = {
    preset.__name__  # tests/data/test_jobs_of_sets.py; ablations are mnist_paper but for a value
    for module in (affnist, emnist, mnist_ablation, multimnist, smallnorb, svhn)
    for preset in module.PRESETS
}


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset not in ELSEWHERE])
def test_every_preset_trains_in_small(preset, tmp_path):
    """Real networks and real options; only images, steps and batch are few."""
    found = PRESETS[preset]()
    data, channels = found.data, found.model.in_channels
    side = 64 if data.decode_size else 32 if channels == 3 else 28
    write_tiny(tmp_path, name=data.name, shape=(channels, side, side), num_train=8, num_test=10)
    for field, split in data.splits.items():
        like = "train" if field == "train_split" else "test"
        if split != like:
            shutil.copytree(tmp_path / data.name / like, tmp_path / data.name / split)
    flags = [
        "--preset",
        preset,
        f"--data.root={tmp_path}",
        "--train.max-steps=2",
        "--train.global-batch-size=4",
    ]
    flags += [
        "--data.lanes=2",
        "--train.num-workers=1",
        "--train.precision=fp32",
        "--train.log-every-steps=1",
    ]
    if data.decode_size:  # of ImageNet: too many weights, and images of another form
        stages = ["8"] * len(found.model.stem_channels)
        flags += [
            "--data.decode-size=0",
            "--model.primary-types=1",
            "--model.primary-stride=4",
            "--model.stem-channels",
            *stages,
        ]
    config, _ = parse_command(None, list(PRESETS), None, flags)
    rows: list[dict] = []
    end = run_training(
        config, rank=0, world_size=1, device=torch.device("cpu"), events=rows.append, save=lambda *_: None
    )
    assert (end["step"], end["num_images"]) == (2, 10)
    assert all(row["loss"] > 0 for row in rows if row["kind"] == "train")
