"""Training over two hosts: the same numbers as on one, with DDP and with every stage of ZeRO."""

from __future__ import annotations

import pytest
from cluster_lab import HALF_A_HOST, LAST_STEP, RayCluster, Run
from hosts import unavailable
from job_helpers import assert_same_state

from capsdist.train.engine.build import zero_requirements

pytestmark = [
    pytest.mark.multihost,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]


@pytest.fixture(scope="module")
def one_host(started_cluster: RayCluster) -> Run:
    """The same run with both workers on one host."""
    return started_cluster.launch("one-host", cores=HALF_A_HOST, engine="ddp").done()


def losses(run: Run) -> list[float]:
    """The loss of every step, as it stands in the record."""
    rows = run.recorded("train")
    assert [row["step"] for row in rows] == list(range(1, LAST_STEP + 1))
    return [row["loss"] for row in rows]


def hosts_by_rank(run: Run) -> list[str]:
    """Which host each rank was on, for the whole run."""
    return [
        host
        for rank in (0, 1)
        for host in sorted({each.host for each in run.attempts() if each.rank == rank})
    ]


def test_both_workers_of_the_yardstick_were_on_one_host(one_host: Run) -> None:
    first, second = hosts_by_rank(one_host)
    assert first == second


def test_ddp_on_two_hosts_equals_one_host_to_the_last_bit(one_host: Run, undisturbed: Run) -> None:
    first, second = hosts_by_rank(undisturbed)
    assert first != second
    assert losses(undisturbed) == losses(one_host)
    assert_same_state(undisturbed.folder, one_host.folder)
    with pytest.raises(AssertionError):  # the check can fail: an earlier checkpoint is another state
        assert_same_state(undisturbed.folder, one_host.folder, back=1)


@pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements()))
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_on_two_hosts_has_the_losses_of_ddp_on_one(
    started_cluster: RayCluster, one_host: Run, stage: int
) -> None:
    run = started_cluster.launch(f"zero-{stage}", engine="zero", zero_stage=stage).done()
    first, second = hosts_by_rank(run)
    assert first != second
    [start] = run.recorded("start")
    assert (start["engine"], start["world_size"]) == (f"zero-{stage}", 2)
    assert losses(run) == pytest.approx(losses(one_host), rel=1e-5)
    assert losses(run) != pytest.approx(losses(one_host)[::-1], rel=1e-5)
