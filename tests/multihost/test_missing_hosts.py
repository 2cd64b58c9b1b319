"""No host left, or never enough of them: the run ends in finite time, and says what is missing."""

from __future__ import annotations

import re

import pytest
from cluster_lab import RayCluster, Run
from hosts import unavailable
from job_helpers import assert_same_state

from capsdist.train.cluster import RunFolder

pytestmark = [
    pytest.mark.multihost,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]


def assert_not_enough(run: Run, *, workers: int, have: int) -> None:
    """The run ended with one line that names what it needs and what there is."""
    end = run.end(60)
    assert end["kind"] == "error", end
    assert end["type"] == "RunError"
    assert "\n" not in end["message"]
    assert re.match(
        rf"train\.workers={workers}: the cluster did not bring up {workers} workers with 1\.5 CPU each in "
        rf"2 x 3 s, and has {have} CPU and 0 GPU now; lower --train\.workers",
        end["message"],
    ), end["message"]
    result = RunFolder(run.folder).read_result()
    assert result is not None
    assert (result.status, result.reason) == ("failed", end["message"])


LIMITS = {"worker_start_timeout_s": 3, "controller_failure_limit": 1}


def test_a_host_lost_without_a_spare_ends_the_run_and_the_same_command_goes_on(
    cluster: RayCluster, undisturbed: Run
) -> None:
    cluster.lose_one()
    run = cluster.launch("no-spare", what="wait", rank=1, step=5, cluster=LIMITS)
    name, _ = run.reached()
    cluster.host(name).run("pkill -KILL -x raylet")
    assert_not_enough(run, workers=2, have=2)

    cluster.repair()
    again = cluster.launch_again(run).done()
    assert [row["resumed_step"] for row in again.recorded("start")] == [0, 3]
    assert_same_state(again.folder, undisturbed.folder)


def test_more_workers_than_the_cluster_can_hold_are_waited_for_in_vain_for_a_while(
    cluster: RayCluster,
) -> None:
    run = cluster.launch("too-many", workers=7, cluster=LIMITS)
    assert_not_enough(run, workers=7, have=6)
