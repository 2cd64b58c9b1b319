"""Where the processes of real runs listen: on one machine on the loopback interface and nowhere else."""

from __future__ import annotations

import ipaddress
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cluster_lab import EXTENSIONS, HALF_A_HOST, RayCluster, Run, wait_until
from hosts import ROOT, Host, Lab, unavailable
from job_helpers import write_tiny
from sockets import Socket, listening

from capsdist.train.engine.build import zero_requirements
from faults.script import Fault
from limits import PATIENCE_S

pytestmark = [
    pytest.mark.multihost,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]
DRIVER = "run_orders.py"
WORKER = "ray::"  # how the command line of Ray's worker processes begins
TRAIN_WORKER = "ray::RayTrainWorker"


class OneHost(RayCluster):
    """A host without a cluster, whose name means an address that others reach; runs start their own Ray."""

    def start(self) -> None:
        """Write data and start the driver."""
        write_tiny(self.place / "data")
        (self.place / "orders").mkdir()
        driver = Path(__file__).with_name("run_orders.py")
        with (self.place / "driver.log").open("w") as log:
            self.head.start(f"exec python -u {driver} {self.place}/orders", log)


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneHost]:
    """The host, with a driver that waits for orders."""
    place = tmp_path_factory.mktemp("one")
    EXTENSIONS.mkdir(parents=True, exist_ok=True)
    env = {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(EXTENSIONS)}
    with Lab(["box"], keep=[place, EXTENSIONS], env=env) as lab:
        host = OneHost(lab, place)
        host.start()
        yield host


def sockets_in_training(run: Run, hosts: Sequence[Host]) -> dict[str, list[Socket]]:
    """Return what each host of a run listens on after a step, while rank 0 waits; then let it go on."""
    run.reached(0, timeout_s=PATIENCE_S)
    found = {host.ip: listening(host) for host in hosts}
    run.script.go_on()
    run.done(timeout_s=PATIENCE_S)
    return found


def test_the_check_sees_an_open_socket(one_host: OneHost, tmp_path: Path) -> None:
    assert one_host.head.run("getent hosts box").split()[0] == one_host.head.ip
    with (tmp_path / "log").open("w") as log:
        server = one_host.head.start(f"exec {sys.executable} -m http.server 8123", log)
        wait_until(lambda: 8123 in {each.port for each in listening(one_host.head)}, "a server listened")
    [found] = [each for each in listening(one_host.head) if each.port == 8123]
    assert found.process == "http.server"
    assert (found.address, found.on_loopback) == ("0.0.0.0", False)
    one_host.head.run("pkill -f http.server")
    server.wait(timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("num_workers", "engine"),
    [
        (2, "ddp"),
        pytest.param(
            1,
            "zero",
            marks=pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements())),
        ),
    ],
)
def test_a_run_on_one_machine_listens_on_loopback_only(
    one_host: OneHost, num_workers: int, engine: str
) -> None:
    run = one_host.launch(
        f"{engine}-{num_workers}",
        Fault("wait", 0, 4),
        cores=HALF_A_HOST,
        num_workers=num_workers,
        engine=engine,
    )
    [found] = sockets_in_training(run, one_host.lab.hosts).values()
    assert [each for each in found if not each.on_loopback] == []
    assert {"gcs_server", "raylet"} <= {each.process for each in found}
    # Ray's own socket of each worker process, and gloo's
    assert len([each for each in found if each.process.startswith(WORKER)]) > num_workers, found


ONE_RANK = """
import os, sys, torch
sys.path[:0] = sys.argv[1:]
from sockets import here
from toy import toy, toy_config
from capsdist.train.engine.build import build_engine
engine = build_engine(toy_config("zero"), toy(), rank=0, world_size=1, device=torch.device("cpu"))
print("\\n", {each.address for each in here() if each.pid == os.getpid()})
engine.close()
"""


@pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements()))
def test_the_group_of_a_single_rank_without_ray_listens_on_loopback_only(one_host: OneHost) -> None:
    folders = f"{ROOT}/tests/multihost {ROOT}/tests/distributed"
    said = one_host.head.run(f"python -c {shlex.quote(ONE_RANK)} {folders}", timeout_s=PATIENCE_S)
    assert "{'127.0.0.1'}" in said.splitlines()[-1], said


SEARCH = """
import sys
sys.path[:0] = sys.argv[1:]
from sockets import here
from capsdist.config import Config
from capsdist.launch.preflight import Machine
from capsdist.launch.session import prepare_ray, ray_session
prepare_ray()
with ray_session(Config(), Machine(1, 0), dashboard=True):
    print("\\n", [each.process for each in here()], [each for each in here() if not each.on_loopback])
"""


def test_the_ray_of_a_search_with_its_dashboard_listens_on_loopback_only(one_host: OneHost) -> None:
    said = one_host.head.run(f"python -c {shlex.quote(SEARCH)} {ROOT}/tests/multihost", timeout_s=PATIENCE_S)
    assert "dashboard.py" in said.splitlines()[-1], said
    assert said.splitlines()[-1].endswith(" []"), said


def may_listen_everywhere(page: str) -> set[str]:
    """The processes that a page lists as listening on all interfaces."""
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    cells = [row[1] for row in rows if "all interfaces" in row[2]]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_a_run_on_several_hosts_listens_where_the_security_page_says(cluster: RayCluster) -> None:
    run = cluster.launch("sockets", Fault("wait", 0, 4), engine="ddp")
    found = sockets_in_training(run, cluster.lab.hosts)
    listed = may_listen_everywhere((ROOT / "SECURITY.md").read_text())
    everywhere = {each.process for sockets in found.values() for each in sockets if each.on_all_interfaces}
    # All workers and actors of Ray are listed as such, the driver too.
    unlisted = {name for name in everywhere - listed if not name.startswith(WORKER)} - {DRIVER}
    assert unlisted == set()
    workers = {
        (ip, each.pid) for ip, sockets in found.items() for each in sockets if each.process == TRAIN_WORKER
    }
    assert len({ip for ip, _ in workers}) == 2
    for ip, pid in workers:
        addresses = [each.address for each in found[ip] if each.pid == pid]
        everywhere_here = [each for each in addresses if ipaddress.ip_address(each).is_unspecified]
        assert len(everywhere_here) == 1, addresses  # Ray's own
        assert set(addresses) - set(everywhere_here) == {ip}  # gloo, and the store of rank 0
