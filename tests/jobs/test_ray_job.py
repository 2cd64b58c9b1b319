"""`ray job submit` against a real cluster of one node, started and ended by this test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from job_helpers import ROOT, STEPS_PER_EPOCH, TINY_FLAGS

from capsdist.train.cluster.rundir import RunFolder

pytestmark = pytest.mark.slow


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, short_tmp: Path) -> Iterator[dict[str, str]]:
    """Environment of somebody who may submit to a cluster with 2 CPUs."""
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
    command = [
        scripts / "ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1",
        f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
        "--object-store-memory=100000000",
    ]  # fmt: skip
    log = (tmp_path_factory.mktemp("cluster") / "log").open("w")
    head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(url, head)
        yield env | {"RAY_API_SERVER_ADDRESS": url}
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(20)
        finally:
            log.close()


def wait_for(url: str, head: subprocess.Popen, seconds: float = 60) -> None:
    """Return once jobs can be submitted to `url`."""
    for _ in range(int(seconds * 2)):
        assert head.poll() is None, "the head ended"
        try:
            with urllib.request.urlopen(f"{url}/api/jobs/", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(url)


def submit(env: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    """Submit jobs/train_mnist.py from the checkout, as the README says, and wait for its end."""
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/train_mnist.py"]
    return subprocess.run(
        [*command, *argv], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=180
    )


def test_a_submitted_job_trains_on_the_cluster_and_tells_how_it_ended(cluster, tiny_root, tmp_path):
    flags = [
        *TINY_FLAGS, f"--data.root={tiny_root}", f"--train.storage={tmp_path}", "--train.name=job",
        "--train.epochs=1", "--train.workers=2",
    ]  # fmt: skip
    done = submit(cluster, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error_percent" in done.stdout
    assert "\x1b[?25l" not in done.stdout  # no progress bar in a log
    assert RunFolder(tmp_path / "job").read_result().steps == STEPS_PER_EPOCH
    refused = submit(cluster, *flags, "--train.seed=1")
    assert refused.returncode == 1
    assert "this run has another configuration: train.seed 0 -> 1" in refused.stdout
