"""`ray job submit`, `stop` and `logs` against a real cluster of one node, started and ended by this test."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cifar_batches import batch_bytes, md5
from job_helpers import ROOT, STEPS_PER_EPOCH, TINY_FLAGS

from capsdist.data import write_split
from capsdist.data.sets.cifar import load_cifar
from capsdist.data.sets.originals import Original
from capsdist.runs.rundir import RunFolder
from capsdist.train.metrics import read_metrics
from limits import PATIENCE_S, wait_until

slow = pytest.mark.slow
MNIST = ["python", "jobs/train_mnist.py", *TINY_FLAGS]
WAIT = ["--runtime-env-json", json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})]


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this cluster lie."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def cluster(tiny_root: Path, storage: Path, short_tmp: Path) -> Iterator[dict[str, str]]:
    """Environment of somebody who may submit to a cluster with 2 CPUs, as the cluster files set one up.

    Ray was started in the project's folder, and names data and storage to all jobs.
    """
    tmp = short_tmp / "c"
    tmp.mkdir()
    gcs, dashboard, agent, client = free_ports(4)
    scripts = Path(sys.executable).parent
    env = {
        **os.environ,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "RAY_TMPDIR": str(tmp),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_AUTH_MODE": "disabled",  # it listens on the loopback interface only, for a minute
    }
    places = {"CAPSDIST_DATA_ROOT": str(tiny_root), "CAPSDIST_STORAGE": str(storage)}
    command = [
        scripts / "ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1",
        f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
        "--object-store-memory=100000000",
    ]  # fmt: skip
    log = (short_tmp / "log").open("w")
    head = subprocess.Popen(
        command, env=env | places, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
    )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(url, head)
        yield env | {"RAY_API_SERVER_ADDRESS": url}
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(PATIENCE_S)
        finally:
            log.close()


def wait_for(url: str, head: subprocess.Popen) -> None:
    """Return once jobs can be submitted to `url`."""

    def answers() -> bool:
        assert head.poll() is None, "the head ended"
        try:
            with urllib.request.urlopen(f"{url}/api/jobs/", timeout=60):
                return True
        except OSError:
            return False

    wait_until(answers, f"{url} answered")


def ray_job(env: dict[str, str], *words: str, status: int = 0) -> str:
    """Run `ray job ...` from the checkout; return what it printed."""
    done = subprocess.run(
        ["ray", "job", *words],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def told(env: dict[str, str], submission: str) -> dict:
    """What the job server says of a job."""
    with urllib.request.urlopen(f"{env['RAY_API_SERVER_ADDRESS']}/api/jobs/{submission}") as answer:
        return json.load(answer)


@slow
def test_a_checkout_is_submitted_trains_and_tells_how_it_ended(cluster, tiny_root, tmp_path):
    flags = [
        f"--data.root={tiny_root}", f"--train.storage={tmp_path}", "--train.name=job", "--train.epochs=1",
        "--train.num-workers=2",
    ]  # fmt: skip
    printed = ray_job(cluster, "submit", "--working-dir", ".", "--", *MNIST, *flags)
    assert re.search(r"^error_percent ", printed, flags=re.MULTILINE)
    assert "warning: RAY_JOB_STOP_WAIT_TIME_S=3: `ray job stop` kills this job 3 s after" in printed
    assert "\x1b[?25l" not in printed  # no progress bar in a log
    assert "\r" not in printed
    assert RunFolder(tmp_path / "job").read_result().steps == STEPS_PER_EPOCH
    refused = ray_job(
        cluster, "submit", "--submission-id=refused", "--working-dir", ".", "--",
        *MNIST, *flags, "--train.seed=1", status=1,
    )  # fmt: skip
    assert "this run has another configuration: train.seed 0 -> 1" in refused
    assert (told(cluster, "refused")["status"], told(cluster, "refused")["driver_exit_code"]) == ("FAILED", 2)


@slow
def test_a_run_in_the_uploaded_package_is_refused_and_elsewhere_may_be_relative(cluster):
    command = ["--", "python", "jobs/train_mnist.py", "--train.storage=runs", "--train.name=lost"]
    lost = ray_job(cluster, "submit", "--submission-id=lost", "--working-dir", ".", *command, status=1)
    [error] = {line for line in lost.splitlines() if line.startswith("error: ")}  # Ray may print it again
    assert error.startswith("error: train.storage='runs': lies in the folder to which Ray has uploaded")
    assert "set --train.storage or CAPSDIST_STORAGE to a folder that all machines see, or s3://" in error
    assert told(cluster, "lost")["driver_exit_code"] == 2
    kept = ray_job(cluster, "submit", *command, "--check", "--data.root=data")
    assert "configuration is valid" in kept


@pytest.fixture(scope="module")
def cifar10(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A packed set `cifar10` in the cluster's data root, from batches in the original format."""
    folder, files = tmp_path_factory.mktemp("batches"), {}
    for split, name, num in (("train", "data_batch_1", 24), ("test", "test_batch", 11)):
        content = batch_bytes(num, num)
        (folder / name).write_bytes(content)
        files[split] = [Original(name, md5(content), "md5")]
    for split, (images, labels) in load_cifar(folder, files).items():
        classes = [f"class {number}" for number in range(10)]
        write_split(tiny_root / "cifar10" / split, images, labels, classes=classes)


@slow
@pytest.mark.usefixtures("cifar10")
def test_a_cluster_with_the_project_installed_needs_no_upload(cluster, storage):
    flags = [
        "--train.num-workers=2", "--train.max-steps=4", "--train.global-batch-size=8", "--data.lanes=4",
        "--model.conv-channels=4", "--model.primary-types=2", "--train.precision=fp32",
    ]  # fmt: skip
    printed = ray_job(cluster, "submit", "--", "python", "jobs/train_cifar.py", *flags)
    assert "Uploading" not in printed
    result = RunFolder(storage / "cifar10-official").read_result()
    assert (result.status, result.steps) == ("done", 4)
    assert f"error_percent {result.error_percent:.2f}" in printed


@slow
def test_a_stopped_job_has_a_last_checkpoint_and_goes_on_when_submitted_again(cluster, storage):
    flags = ["--train.name=stopped", "--train.num-workers=2", "--train.checkpoint-every-steps=1000000"]
    forever = ["--train.epochs=1000000", "--train.validate-every-steps=1000000"]
    first = ["submit", "--no-wait", "--submission-id=first", *WAIT, "--", *MNIST, *flags, *forever]
    ray_job(cluster, *first)
    run = RunFolder(storage / "stopped")
    wait_until(lambda: len(read_metrics(run.path / "metrics.jsonl")) >= 3, "the run trained")
    ray_job(cluster, "stop", "first")
    assert told(cluster, "first")["status"] == "STOPPED"
    result = run.read_result()
    assert result.status == "stopped"
    assert result.steps == run.steps_saved() > 0
    logs = ray_job(cluster, "logs", "first")
    assert "stopping: a last checkpoint, within 58 s" in logs
    assert f"stopped: the same command goes on from step {result.steps:,}" in logs
    assert "warning" not in logs

    last = result.steps + 2
    more = ["submit", *WAIT, "--", *MNIST, *flags, f"--train.max-steps={last}", *forever]
    printed = ray_job(cluster, *more)
    assert f"continues after step {result.steps:,}" in printed
    assert (run.read_result().status, run.read_result().steps) == ("done", last)


def test_what_is_uploaded_is_small_and_nothing_but_the_project(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        top = {name.partition("/")[0] for name in archive.namelist()}
    assert package.stat().st_size < 4_000_000  # sources alone: neither data nor records nor tests
    assert {"capsdist", "jobs", "data_prep", "pyproject.toml"} <= top
    assert not top & {".git", "tests", "data", "runs", ".venv", ".pytest_cache"}
