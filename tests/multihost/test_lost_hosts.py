"""Workers and hosts lost in mid-training: the run recovers by itself, and ends with the same weights.

The third host is the spare. Every fault strikes at a scripted (rank, step), so that each run is known to have
gone on from the checkpoint before it.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cluster_lab import RayCluster, Run, contents, raylet, wait_until
from hosts import Host, unavailable
from job_helpers import assert_same_state

from capsdist.train.metrics import Row

pytestmark = [
    pytest.mark.multihost,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]
TIMES = {"images_per_s", "step_time_s", "eta_s", "time_s", "seconds", "wall_time_s"}
RESTART = {"worker_start_timeout_s": 15}  # Ray may try once with a host that it does not know to be lost


def trained(run: Run) -> list[Row]:
    """What the record says of steps and validations, without the times."""
    rows = [*run.recorded("train"), *run.recorded("validation")]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def checkpoints(run: Run) -> list[str]:
    """All folders of a run that are checkpoints, or were to become ones."""
    return sorted(path.name for path in run.folder.glob("*step_*"))


def assert_recovered(run: Run, undisturbed: Run, *, resumed: int) -> None:
    """The run went on once, after step `resumed`, and what it leaves is what the undisturbed run leaves."""
    assert [row["resumed_step"] for row in run.recorded("start")] == [0, resumed]
    assert len(run.rows("failure")) == 1
    assert checkpoints(run) == checkpoints(undisturbed)
    assert_same_state(run.folder, undisturbed.folder)
    assert trained(run) == trained(undisturbed)


def hosts_of(run: Run, *, attempt: int) -> set[str]:
    """The hosts of the first or second attempt, which repeats steps: the processes tell them apart."""
    steps = run.fault.steps()
    first = {(each.host, each.pid) for each in steps if each.step == 1}
    return {each.host for each in steps if ((each.host, each.pid) not in first) == bool(attempt)}


def runs(host: Host, pid: int) -> bool:
    """Whether a process of a host is there."""
    return host.run(f"test -d /proc/{pid} && echo yes", check=False).strip() == "yes"


def test_a_killed_worker_is_replaced(cluster: RayCluster, undisturbed: Run) -> None:
    run = cluster.launch("killed", what="die", rank=1, step=5).done()
    assert_recovered(run, undisturbed, resumed=3)
    [failure] = run.rows("failure")
    assert failure["message"] == "worker 1: its process died (killed, out of memory, or a native crash)"


def test_a_host_whose_raylet_is_killed_is_replaced(cluster: RayCluster, undisturbed: Run) -> None:
    run = cluster.launch("raylet", what="wait", rank=1, step=5, cluster=RESTART)
    name, pid = run.reached()
    lost = cluster.host(name)
    lost.run("pkill -KILL -x raylet")
    run.done()
    assert_recovered(run, undisturbed, resumed=3)
    assert name in hosts_of(run, attempt=0)
    assert len(hosts_of(run, attempt=1) - {name}) == 2
    assert not runs(lost, pid)


def test_a_host_cut_off_while_it_saves_is_replaced_and_changes_nothing_when_it_wakes_up(
    cluster: RayCluster, undisturbed: Run
) -> None:
    run = cluster.launch("cut", what="freeze in saving", rank=0, step=6, cluster=RESTART)
    name, pid = run.reached()
    lost = cluster.host(name)
    lost.cable(plugged=False)
    run.done()
    assert name not in hosts_of(run, attempt=1)
    assert runs(lost, pid)
    left = contents(run.folder)

    run.fault.go_on()
    lost.run(f"kill -CONT {pid}")  # the old worker saves on: it has seen the shared folder all the time
    time.sleep(1)
    assert contents(run.folder) == left
    lost.cable(plugged=True)
    wait_until(lambda: not runs(lost, pid) and not raylet(lost), "the old worker ended with its raylet")
    assert contents(run.folder) == left
    assert_recovered(run, undisturbed, resumed=3)


def test_a_write_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    before = contents(tmp_path)
    (tmp_path / "run" / ".hidden").write_text("")
    assert contents(tmp_path) != before
