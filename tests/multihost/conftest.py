"""One Ray cluster of four hosts for all tests of this folder, and the run that others are compared with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))
from cluster_lab import EXTENSIONS, RayCluster, Run
from hosts import Lab

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TORCH_EXTENSIONS_DIR": str(EXTENSIONS),
}


@pytest.fixture(scope="session")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A head without CPUs, three hosts with two each, and a driver that waits for orders."""
    place = tmp_path_factory.mktemp("multihost")
    EXTENSIONS.mkdir(parents=True, exist_ok=True)
    with Lab(["head", "one", "two", "three"], keep=[place, EXTENSIONS], env=ENVIRONMENT) as lab:
        cluster = RayCluster(lab, place)
        cluster.start()
        yield cluster


@pytest.fixture
def cluster(started_cluster: RayCluster) -> RayCluster:
    """The cluster with all its hosts."""
    started_cluster.repair()
    return started_cluster


@pytest.fixture(scope="session")
def undisturbed(started_cluster: RayCluster) -> Run:
    """A run with DDP on two hosts that nothing disturbs."""
    return started_cluster.launch("undisturbed", engine="ddp").done()
