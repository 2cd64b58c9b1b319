"""cluster/local.py for real: a job over two nodes, no port open but on loopback, the status is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import ROOT, Lab, unavailable

from capsdist.train.metrics import read_metrics

pytestmark = [
    pytest.mark.multihost,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]
LISTENING = "0A"  # in /proc/net/tcp
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
JOB = (
    "python jobs/train_mnist.py --data.name digits --train.name local --train.num-workers 2"
    " --train.device cpu --train.precision fp32 --train.max-steps 3"
    " --train.global-batch-size 16 --model.conv-channels 8"
    " --model.primary-types 2"
)


def open_addresses(table: str) -> set[str]:
    """The addresses that somebody listens on, by the text of /proc/net/tcp and tcp6."""
    rows = [line.split() for line in table.splitlines() if ":" in line]
    return {row[1].partition(":")[0] for row in rows if len(row) > 3 and row[3] == LISTENING}


def test_the_check_sees_an_open_port() -> None:
    assert open_addresses("0: 00000000:1F90 00000000:0000 0A") == {"00000000"}


def test_a_command_runs_on_several_nodes_and_its_status_is_kept(tmp_path: Path) -> None:
    pack = [sys.executable, str(ROOT / "data_prep/pack_digits.py"), "--root", str(tmp_path / "data")]
    subprocess.run(pack, check=True, capture_output=True)
    folders = f"--data.root {tmp_path}/data --train.storage {tmp_path}/runs"
    inside = f"cat /proc/net/tcp /proc/net/tcp6 > {tmp_path}/ports; {JOB} {folders} && exit 7"
    with Lab(["one"], keep=[tmp_path]) as lab:
        [host] = lab.hosts
        command = f"cd {ROOT}; python cluster/local.py --nodes 2 -- sh -c '{inside}'; echo status $?"
        printed = host.run(command)
        assert printed.splitlines()[-1] == "status 7", printed
        left = host.run("pgrep raylet; ls /tmp").splitlines()
        assert [each for each in left if each.isdigit() or each.startswith("ray")] == []
    [start] = [row for row in read_metrics(tmp_path / "runs/local/metrics.jsonl") if row["kind"] == "start"]
    assert start["world_size"] == 2
    assert json.loads((tmp_path / "runs/local/result.json").read_text())["status"] == "done"
    assert open_addresses((tmp_path / "ports").read_text()) - LOOPBACK == set()
