"""Real searches on a real Ray: killed in the middle and continued, stopped by a signal, failures kept."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from job_helpers import ROOT, TINY_FLAGS, run_job_file, write_tiny

from capsdist.runs.files import open_files
from capsdist.train.metrics import read_metrics
from capsdist.tune.journal import FAILED, FINISHED, OUT_OF_MEMORY, STOPPED, History, Journal
from limits import PATIENCE_S

pytestmark = pytest.mark.slow

FLAGS = [
    *TINY_FLAGS, "--train.num-workers=1", "--train.device=cpu", "--train.epochs=400",
    "--train.validate-every-steps=160", "--train.checkpoint-every-steps=160", "--search.grace-steps=640",
    "--search.max-parameters=9000", "--search.concurrency=2", "--train.name=killed",
]  # fmt: skip
SPACE = ["--space.class-dim", "4", "300", "--space.learning-rate", "0.001", "0.002", "1e30"]
TOTAL = 3200


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_tiny(folder / "data")
    return folder


@pytest.fixture(scope="module")
def env() -> Iterator[dict[str, str]]:
    assert "RAY_ADDRESS" not in os.environ, "unset RAY_ADDRESS: the tests start a Ray of their own"
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as tmp:
        yield {**os.environ, "RAY_TMPDIR": tmp, "COLUMNS": "100"}


def start(place: Path, env: dict[str, str], *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "jobs" / "tune_routing.py"), *FLAGS, *SPACE, *flags]
    return subprocess.Popen(
        command, cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(job: subprocess.Popen[str], folder: Path, reached: Callable[[History], bool]) -> History:
    """Return the history of a search as soon as it is as wished; fails if the search ends before."""
    path = folder / "journal.jsonl"
    while job.poll() is None:
        if path.exists():
            history = History()
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    history.add(json.loads(line))
            if reached(history):
                return history
        time.sleep(0.05)
    pytest.fail(f"the search ended too early: {job.communicate()}")


def one_ended_and_one_under_way(history: History) -> bool:
    return bool(history.ended()) and any(trial.step >= 320 for trial in history.running())


OTHER_RAY = """
import ray
ray.init("local", num_cpus=0, include_dashboard=False, log_to_driver=False)
print("ready", flush=True)
input()
"""


@pytest.fixture(scope="module")
def another_ray(env: dict[str, str]) -> Iterator[None]:
    """A Ray of somebody else on this machine, which nothing of ours may take for its own."""
    command = [sys.executable, "-c", OTHER_RAY]
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as other:
        assert other.stdout is not None
        assert "ready" in other.stdout.readline()
        yield
        other.communicate("\n")


@pytest.fixture(scope="module")
def killed(
    place: Path, env: dict[str, str], another_ray: None
) -> tuple[History, History, subprocess.CompletedProcess[str]]:
    """A search killed by SIGKILL and started again: what it knew then, what at the end, and its output."""
    folder = place / "runs" / "killed"
    job = start(place, env)
    before = wait_for(job, folder, one_ended_and_one_under_way)
    job.kill()
    job.communicate()
    done = run_job_file("tune_routing.py", *FLAGS, *SPACE, cwd=place, env=env)
    return before, Journal(open_files(folder)).history, done


def test_a_killed_search_goes_on_and_ends(killed):
    _, after, done = killed
    assert (done.returncode, done.stderr) == (0, "")
    assert after.running() == []
    assert sorted(trial.status for trial in after.trials.values()) in (
        [FAILED, FINISHED, FINISHED],
        [FAILED, FINISHED, STOPPED],
    )
    assert len(after.attempts) == 2
    assert after.attempts[1]["ended_before"] >= 1


def test_trials_that_had_ended_are_not_touched(killed, place):
    before, after, _ = killed
    for trial in before.ended():
        assert after.trials[trial.number] == trial
        starts = [row for row in metrics(place, trial.name) if row["kind"] == "start"]
        assert len(starts) == 1


def test_trials_under_way_go_on_from_their_checkpoints(killed, place):
    before, after, _ = killed
    under_way = [trial for trial in before.running() if trial.step >= 320]
    for trial in under_way:
        starts = [row["resumed_step"] for row in metrics(place, trial.name) if row["kind"] == "start"]
        assert starts[0] == 0
        assert starts[-1] >= trial.step - 160  # Ray may not have heard of the last checkpoint
        assert after.trials[trial.number].values == trial.values
        assert after.trials[trial.number].step > trial.step


def metrics(place: Path, name: str) -> list[dict]:
    return read_metrics(place / "runs" / "killed" / "trials" / name / "metrics.jsonl")


def test_a_failed_trial_and_infeasible_points_are_recorded(killed):
    _, after, done = killed
    (failed,) = [trial for trial in after.trials.values() if trial.status == FAILED]
    assert failed.values["optim.learning_rate"] == 1e30
    assert "a lower --optim.learning-rate than" in failed.reason
    assert {values["model.class_dim"] for values, _ in after.infeasible} == {300}
    assert len(after.infeasible) == 3
    assert "search.max_parameters=9,000" in done.stdout


def test_the_output_is_calm_and_ends_with_command_and_error(killed, place):
    _, _, done = killed
    lines = done.stdout.splitlines()
    assert len(lines) < 60, done.stdout
    assert not any("ray" in line.lower().replace("starting ray", "") for line in lines), done.stdout
    assert lines[-2].startswith("capsdist train --config ")
    assert lines[-1].startswith("error_percent ")
    result = json.loads((place / "runs" / "killed" / "result.json").read_text())
    assert result["command"] == lines[-2]
    assert (place / "runs" / "killed" / "search.png").stat().st_size > 10_000


def test_a_finished_search_started_again_prints_its_table(killed, place, env):
    done = run_job_file("tune_routing.py", *FLAGS, *SPACE, cwd=place, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "search killed is done already"
    assert done.stdout.splitlines()[1:] == killed[2].stdout.splitlines()[-len(done.stdout.splitlines()) + 1 :]


def test_a_changed_space_is_refused(killed, place, env):
    done = run_job_file("tune_routing.py", *FLAGS, "--space.class-dim", "4", "5", cwd=place, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "space.class_dim (4, 300) -> (4, 5), space.learning_rate (0.001, 0.002, 1e+30) -> ()" in done.stderr
    )


def test_the_printed_command_trains_what_was_found(killed, place, env):
    lines = killed[2].stdout.splitlines()
    name, *words = shlex.split(lines[-2])
    command = [sys.executable, "-m", name, *words]

    def run(option):
        return subprocess.run(
            [*command, option], cwd=place, env=env, capture_output=True, text=True, check=False
        )

    checked = run("--check")
    assert (checked.returncode, checked.stderr) == (0, "")
    # as a trial has: equal threads repeat a CPU run bit for bit
    trained = run("--launch.cpus-per-worker=1")
    assert trained.returncode == 0, trained.stderr
    best = json.loads((place / "runs" / "killed" / "result.json").read_text())
    stored = json.loads((place / "runs" / "killed-best" / "config.json").read_text())
    assert stored["model"] == best["config"]["model"]
    assert stored["optim"] == best["config"]["optim"]
    figure = trained.stdout.splitlines()[-1].split()[1]
    assert figure == f"{best['error_percent']:.2f}"


@pytest.fixture
def neighbour(env: dict[str, str]) -> Iterator[None]:
    """Another Ray on this machine, as that of another user, at another place."""
    code = "import ray; ray.init('local', num_cpus=1, include_dashboard=False); print(flush=True); input()"
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as tmp:
        place = {**env, "RAY_TMPDIR": tmp, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        with subprocess.Popen(
            [sys.executable, "-c", code], env=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as ray:
            assert ray.stdin
            assert ray.stdout
            ray.stdout.readline()
            yield
            ray.stdin.close()


@pytest.mark.usefixtures("neighbour")
def test_stopped_trials_leave_their_workers_to_the_next_though_there_is_another_ray(place, env):
    flags = [
        "--train.name=beside", "--train.num-workers=2", "--train.epochs=64", "--search.concurrency=1",
        "--search.grace-steps=8", "--train.validate-every-steps=8", "--train.checkpoint-every-steps=8",
        "--launch.worker-start-timeout-s=60",
    ]  # fmt: skip
    space = ["--space.learning-rate", "0.001", "0.002", "0.003", "0.004"]
    done = run_job_file("tune_routing.py", *FLAGS, *flags, *space, cwd=place, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    history = Journal(open_files(place / "runs" / "beside")).history
    statuses = [trial.status for trial in history.trials.values()]
    assert set(statuses) == {FINISHED, STOPPED}, done.stdout
    assert (
        STOPPED in statuses[:-1]
    )  # six decisions about each of three trials: one before the last is stopped


def test_a_trial_without_memory_is_recorded_and_the_search_goes_on(place, env):
    """The first network has thousands of gigabytes; the estimate that refuses it is told otherwise."""
    flags = [
        "--train.name=huge", "--train.epochs=4", "--search.scheduler=none", "--search.max-parameters=None",
        "--search.worker-memory-gib=1e9", "--search.concurrency=1", "--search.seed=3",
    ]  # fmt: skip
    space = ["--space.class-dim", "4", "1000000000"]
    done = run_job_file("tune_routing.py", *FLAGS, *flags, *space, cwd=place, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    history = Journal(open_files(place / "runs" / "huge")).history
    ends = [(t.values["model.class_dim"], t.status) for t in history.trials.values()]
    assert ends == [(1_000_000_000, OUT_OF_MEMORY), (4, FINISHED)]
    assert "can't allocate memory" in history.trials[1].reason
    assert "out of memory: out of memory on " in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_search_which_then_goes_on(place, env, number):
    name = f"stopped-{int(number)}"
    job = start(place, env, f"--train.name={name}", "--train.epochs=100000")
    wait_for(job, place / "runs" / name, lambda history: any(t.step >= 160 for t in history.running()))
    job.send_signal(number)
    _, errors = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 130
    assert errors == "stopped: the same command goes on\n"
    history = Journal(open_files(place / "runs" / name)).history
    assert history.running()
    ended = history.ended()
    assert all(trial.status == FAILED and "--optim.learning-rate" in trial.reason for trial in ended)
