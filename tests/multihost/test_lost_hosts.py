"""Workers and hosts lost in mid-training: the run recovers by itself, and ends with the same weights.

The third host is the spare. Every fault strikes at a scripted (rank, step), so that each run is known to have
gone on from the checkpoint before it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster_lab import HOST_CPUS, LAST_STEP, RayCluster, Run, contents
from hosts import Host, unavailable
from job_helpers import assert_same_state

from capsdist.launch import RunFolder
from capsdist.train.metrics import Row
from faults.script import Fault
from limits import wait_until

pytestmark = [
    pytest.mark.multihost,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]
TIMES = {"images_per_s", "step_time_s", "eta_s", "time_s", "seconds", "wall_time_s"}
TWO_TRIES = {"worker_start_timeout_s": 30, "controller_failure_limit": 1}
DIED = "its process died (killed, out of memory, or a native crash)"
ONE_TRY = {"worker_start_timeout_s": 1, "controller_failure_limit": 0}
RESTART = {"worker_start_timeout_s": 60}  # Ray may try once with a host that it does not know to be lost


@dataclass(frozen=True)
class CutOff:
    """A run that lost a host; its worker's process there; what the run's folder held when it was over."""

    run: Run
    host: Host
    pid: int
    left: dict[str, str]


def trained(run: Run) -> list[Row]:
    """What the record says of steps and validations, without the times."""
    rows = [*run.recorded("train"), *run.recorded("validation")]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def checkpoints(run: Run) -> list[str]:
    """All folders of a run that are checkpoints, or were to become ones."""
    return sorted(path.name for path in run.folder.glob("*step_*"))


def assert_recovered(run: Run, undisturbed: Run, *, resumed: list[int]) -> None:
    """The run went on after these steps, and what it leaves is what the undisturbed run leaves."""
    assert [row["resumed_step"] for row in run.recorded("start")] == [0, *resumed]
    assert len(run.rows("failure")) == len(resumed)
    assert checkpoints(run) == checkpoints(undisturbed)
    assert_same_state(run.folder, undisturbed.folder)
    assert trained(run) == trained(undisturbed)


def assert_not_enough(run: Run, *, num_workers: int, have: int) -> None:
    """The run ended with one line that names what it needs and what there is."""
    end = run.end()
    assert (end["kind"], end.get("type")) == ("error", "RunError"), end
    limits = run.config.launch
    times = f"{limits.controller_failure_limit + 1} x {limits.worker_start_timeout_s:g} s"
    need = f"the cluster did not bring up {num_workers} workers with 1.5 CPU each in {times}"
    said = (
        f"train.num_workers={num_workers}: {need}, and has {have} CPU and 0 GPU now; lower "
        "--train.num-workers, "
    )
    assert end["message"].startswith(said), end
    assert "\n" not in end["message"]
    result = RunFolder(run.folder).read_result()
    assert result is not None
    assert (result.status, result.reason) == ("failed", end["message"])


def last_hosts(run: Run) -> set[str]:
    """The hosts of the last attempt: those that did the last step."""
    return {each.host for each in run.attempts() if each.steps and each.steps[-1].step == LAST_STEP}


def runs(host: Host, pid: int) -> bool:
    """Whether a process of a host is there."""
    return host.run(f"test -d /proc/{pid} && echo yes", check=False).strip() == "yes"


def test_a_killed_worker_and_then_a_host_whose_raylet_is_killed_are_replaced(
    cluster: RayCluster, undisturbed: Run
) -> None:
    run = cluster.launch("killed", Fault("kill", 1, 5), Fault("wait", 1, 7), cluster=RESTART)
    name, pid = run.reached(1)
    lost = cluster.host(name)
    lost.run("pkill -KILL -x raylet")
    run.done()
    assert_recovered(run, undisturbed, resumed=[3, 6])
    assert run.rows("failure")[0]["message"] == f"worker 1: {DIED}"
    assert len(last_hosts(run) - {name}) == 2
    assert not runs(lost, pid)


@pytest.fixture(scope="module")
def cut(started_cluster: RayCluster) -> CutOff:
    """A run that lost the host of rank 0 while that saved; then it wakes up, and gets its cable back."""
    started_cluster.repair()
    run = started_cluster.launch("cut", Fault("freeze_saving", 0, 6), cluster=RESTART)
    name, pid = run.reached()
    host = started_cluster.host(name)
    started_cluster.cut(host)
    run.done()
    assert runs(host, pid)
    left = contents(run.folder)
    run.script.go_on()
    host.run(f"kill -CONT {pid}")  # it saves on: it has seen the shared folder all the time
    time.sleep(1)
    host.cable(plugged=True)
    return CutOff(run, host, pid, left)


def test_a_host_cut_off_while_it_saves_is_replaced(cut: CutOff, undisturbed: Run) -> None:
    assert_recovered(cut.run, undisturbed, resumed=[3])
    assert cut.host.name not in last_hosts(cut.run)


def test_a_host_lost_without_a_spare_ends_the_run(started_cluster: RayCluster) -> None:
    started_cluster.lose_spares()  # after the test before there is none
    run = started_cluster.launch("no-spare", Fault("wait", 1, 5), cluster=TWO_TRIES)
    name, _ = run.reached()
    started_cluster.host(name).run("pkill -KILL -x raylet")
    assert_not_enough(run, num_workers=2, have=HOST_CPUS)
    assert run.recorded("checkpoint")[-1]["step"] == 3


def test_the_worker_of_a_host_that_was_cut_off_changes_nothing_and_ends(cut: CutOff) -> None:
    wait_until(lambda: not runs(cut.host, cut.pid), "the old worker ended, with its raylet")
    assert contents(cut.run.folder) == cut.left


def test_more_workers_than_there_will_ever_be_are_waited_for_as_long_as_allowed(
    started_cluster: RayCluster,
) -> None:
    have = started_cluster.num_cpus()
    run = started_cluster.launch("too-many", num_workers=7, cluster=ONE_TRY)
    assert_not_enough(run, num_workers=7, have=have)


def test_a_write_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    before = contents(tmp_path)
    (tmp_path / "run" / ".hidden").write_text("")
    assert contents(tmp_path) != before
