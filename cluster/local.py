"""Several Ray nodes on this machine: to see spreading, lost nodes and jobs without a cluster.

Uses Ray's own `ray.cluster_utils`. A head that trains nothing and `nodes` workers, each a raylet with
`cpus` CPUs, all on the loopback interface, with a token of their own.

    python cluster/local.py --nodes 2 -- python jobs/train_mnist.py --train.num-workers 2
    python cluster/local.py            # stays until Ctrl-C; prints what another shell needs to use it
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import tyro

from capsdist.console import run_program
from capsdist.storage.temporary import temporary_folder

OBJECT_STORE_BYTES = 100_000_000


def main(
    nodes: int = 2,
    cpus: int = 1,
    dashboard_port: int = 8265,
    command: tyro.conf.Positional[tuple[str, ...]] = (),
) -> int:
    """Start several Ray nodes on this machine, run a command on them or wait for Ctrl-C, and stop them.

    Args:
        nodes: Worker nodes, beside the head.
        cpus: CPUs that each of them has for Ray; more than the machine has are shared.
        dashboard_port: Port of dashboard and job server on 127.0.0.1.
        command: Command to run (put it after `--`); its exit status becomes this one's.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with (
        temporary_folder() as folder,
        _cluster(folder, nodes, cpus, dashboard_port),
    ):
        if command:
            return subprocess.run(command, check=False).returncode
        names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
        print(f"{nodes} nodes with {cpus} CPU each. In another shell:")
        print("export " + " ".join(f"{name}={os.environ[name]}" for name in names))
        print("Ctrl-C ends them.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


@contextlib.contextmanager
def _cluster(folder: Path, nodes: int, cpus: int, dashboard_port: int) -> Iterator[None]:
    """Run the nodes; while they do, this process's environment is that of a command that uses them."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.chmod(0o600)  # that of an earlier start, too
    token.write_text(secrets.token_hex(32))
    os.environ |= {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all addresses become 127.0.0.1; read at Ray's import
    }
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 0,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": dashboard_port,
        "dashboard_agent_listen_port": 0,  # any free one: the default may belong to another Ray here
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES)
        os.environ["RAY_ADDRESS"] = str(cluster.address)
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://{cluster.webui_url}"
        yield
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main, description=__doc__)))
