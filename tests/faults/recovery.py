"""How long a run stands still when a worker crashes, or when a machine is lost and another one takes over.

Several Ray nodes on this machine, as `cluster/local.py` has them: a head that trains nothing, one node
of one core per worker, and a spare. A machine is lost by SIGKILL of its raylet and all its processes; a
pulled cable, which takes longer to notice, is what tests/multihost tries on hosts of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from capsdist.launch.session import prepare_ray
from capsdist.storage.temporary import temporary_folder
from faults.campaign import Verdict, describe, open_bench
from faults.lineage import Attempt
from faults.script import Fault, Mark
from faults.tiny import WORKERS

__all__ = ["FAULTS", "recovery_figures", "standstill_s"]

FAULTS = (Fault("kill", 1, 18), Fault("host", 1, 43))

_OBJECT_STORE_BYTES = 100_000_000


def recovery_figures(*, repeats: int, log: Callable[[str], None]) -> dict[str, list[float] | int]:
    """Return the seconds from each fault to the next optimizer step, of `repeats` runs that have both.

    Returns:
        worker_s: from the SIGKILL of a worker; host_s: of a raylet and all its processes, with a spare node.
        samples_lost, samples_doubled, runs_diverged: as `fault_figures`.
    """
    found: dict[str, list[float]] = {"worker_s": [], "host_s": []}
    verdicts: list[Verdict] = []
    with open_bench() as bench:
        for number in range(repeats):
            with _nodes():
                verdicts.append(bench.run(f"run-{number}", FAULTS, log))
            log(describe(verdicts[-1]))
            for mark in verdicts[-1].marks:
                name = "worker_s" if mark.fault.kind == "kill" else "host_s"
                found[name].append(standstill_s(mark, verdicts[-1].attempts))
                log(f"  {name} {found[name][-1]:.1f}")
    return found | {
        "samples_lost": sum(each.lost for each in verdicts),
        "samples_doubled": sum(each.doubled for each in verdicts),
        "runs_diverged": sum(each.diverged for each in verdicts),
    }


def standstill_s(mark: Mark, attempts: dict[int, list[Attempt]]) -> float:
    """Return the seconds from a fault until all ranks of a later attempt have done their first step.

    Raises:
        ValueError: no later attempt has done one.
    """
    firsts = []
    for rank, own in attempts.items():
        later = [each for each in own if each.began > mark.time and each.steps]
        if not later:
            raise ValueError(f"rank {rank} has done no step after {mark.fault}: the run did not recover")
        firsts.append(later[0].steps[0].time)
    return max(firsts) - mark.time


@contextmanager
def _nodes() -> Iterator[None]:
    """Run a head without cores, and nodes of one core: one a worker, and a spare; `launch` joins them."""
    with temporary_folder() as folder, _environment(str(folder)):
        prepare_ray()
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(WORKERS + 1):
                cluster.add_node(num_cpus=1, object_store_memory=_OBJECT_STORE_BYTES)
            os.environ["RAY_ADDRESS"] = str(cluster.address)
            yield
        finally:
            cluster.shutdown()


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= {"RAY_TMPDIR": folder, "RAY_ADDRESS": "local"}
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= before
