"""Ray's autoscaler for real: a job on a head without workers brings two nodes up, trains, and they go."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import ROOT, Host, Lab, unavailable

from capsdist.clusters import check_file
from capsdist.train.metrics import read_metrics
from limits import wait_until

pytestmark = [
    pytest.mark.multihost,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]
HEAD_ID = "f" * 51 + "00000"  # fixed in the provider, like the name ray.head.default
DASHBOARD = "http://127.0.0.1:8265"
# The provider that starts nodes as processes of this machine; an external one gets none of Ray's defaults.
CLUSTER = {
    "cluster_name": "fake",
    "max_workers": 2,
    "idle_timeout_minutes": 0.1,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
        "gcs_address": "127.0.0.1:6379",
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu1": {
            "resources": {"CPU": 1, "object_store_memory": 100_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "file_mounts": {},
    "auth": {},
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "cluster_synced_files": [],
}
TRAIN = [
    "python", "jobs/train_mnist.py", "--data.name=digits", "--train.name=scaled", "--train.num-workers=2",
    "--train.device=cpu", "--train.precision=fp32", "--train.max-steps=6", "--train.global-batch-size=16",
    "--model.conv-channels=8", "--model.primary-types=2", "--launch.worker-start-timeout-s=600",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the host sees, with the packed digits below data/."""
    folder = tmp_path_factory.mktemp("scaling")
    pack = [sys.executable, str(ROOT / "data_prep/pack_digits.py"), "--root", str(folder / "data")]
    subprocess.run(pack, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def head(place: Path) -> Iterator[Host]:
    """A host with a Ray head that has no CPU and no worker, an autoscaler, and a token."""
    (place / "cluster.yaml").write_text(json.dumps(CLUSTER))
    assert [str(problem) for problem in check_file(place / "cluster.yaml")] == []
    user = {
        "RAY_AUTH_MODE": "token",
        "RAY_API_SERVER_ADDRESS": DASHBOARD,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all addresses are 127.0.0.1, those of the fake nodes too
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ray = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    with Lab(["head"], keep=[place], env=user) as lab:
        [host] = lab.hosts
        host.run("umask 077; mkdir .ray; head -c 32 /dev/urandom | base64 -w 0 > .ray/auth_token")
        host.run(
            f"cd {ROOT}; ray start --head --port=6379 --num-cpus=0 --node-ip-address=127.0.0.1"
            " --dashboard-host=127.0.0.1 --object-store-memory=100000000"
            f" --autoscaling-config={place}/cluster.yaml",
            env=ray,
        )
        yield host


def test_a_job_brings_nodes_up_trains_and_they_go_again(head: Host, place: Path) -> None:
    def counts() -> list[int]:
        return [int(line) for line in (place / "nodes").read_text().split()]

    with (place / "nodes").open("w") as log:
        counter = Path(__file__).with_name("count_nodes.py")
        head.start(f"exec python {counter} {DASHBOARD} /root/.ray/auth_token", log)
    wait_until(lambda: counts() == [1], "the head alone was seen")
    folders = f"--data.root={place}/data --train.storage={place}/runs"
    printed = head.run(f"ray job submit -- {' '.join(TRAIN)} {folders}")
    assert "error_percent" in printed
    wait_until(lambda: counts()[-1] == 1, "the nodes went")
    assert max(counts()) == 3, counts()  # head and two workers

    run = place / "runs" / "scaled"
    assert json.loads((run / "result.json").read_text())["status"] == "done"
    [start] = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "start"]
    assert start["world_size"] == 2  # on nodes of 1 CPU: each rank had a node of its own
    logs = "/tmp/ray/session_latest/logs"
    assert "Traceback" not in head.run(f"cat {logs}/monitor.err {logs}/monitor.out")


def test_the_job_server_asks_for_the_token(head: Host) -> None:
    address = f"urllib.request.urlopen('{DASHBOARD}/api/jobs/')"
    refused = head.run(f'python -c "import urllib.request; {address}"', check=False)
    assert "HTTP Error 401" in refused
    assert "RAY_AUTH_MODE" in head.run("ray job list", env={"RAY_AUTH_MODE": "disabled"}, check=False)
