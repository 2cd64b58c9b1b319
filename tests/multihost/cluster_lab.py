"""A Ray cluster on hosts of one machine, and runs on it: ordered, watched, disturbed."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hosts import FAST_HEALTH, Host, Lab, start_ray
from job_helpers import tiny_config, write_tiny

from capsdist.config import Config, Launch
from capsdist.train.metrics import Row, read_metrics
from faults.lineage import Attempt, read_attempts
from faults.script import Fault, Script
from limits import PATIENCE_S, wait_until

__all__ = [
    "EXTENSIONS", "HALF_A_HOST", "HOST_CPUS", "LAST_STEP", "RayCluster", "Run", "contents", "raylet",
]  # fmt: skip

LAST_STEP = 8
HOST_CPUS = 2
# Cores that a worker asks for; torch has one thread in both cases.
WHOLE_HOST, HALF_A_HOST = 1.5, 1.0
# DeepSpeed's compiled extension: /root is private on every host, and compiling takes a minute.
EXTENSIONS = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache/torch_extensions"))


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files below `folder`, hidden ones too, by relative path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def raylet(host: Host) -> bool:
    """Whether a raylet runs on a host."""
    return bool(host.run("pgrep -x raylet || true").strip())


@dataclass(frozen=True)
class Run:
    """A run that the driver was told to launch."""

    config: Config
    script: Script
    recordings: Path
    shown: Path

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.config.train.storage) / self.config.train.name

    def rows(self, *kinds: str) -> list[Row]:
        """Return the rows of these kinds that the driver has shown so far."""
        content = self.shown.read_bytes() if self.shown.exists() else b""
        shown = [json.loads(line) for line in content.split(b"\n")[:-1]]
        return [row for row in shown if row["kind"] in kinds]

    def recorded(self, kind: str) -> list[Row]:
        """Return rows of the run's own record."""
        return [row for row in read_metrics(self.folder / "metrics.jsonl") if row["kind"] == kind]

    def reached(self, number: int = 0, timeout_s: float = PATIENCE_S) -> tuple[str, int]:
        """Wait until a fault strikes; return the host and process that it strikes."""
        over: list[Row] = []

        def there() -> bool:
            over.extend(self.rows("result", "error"))
            return bool(over) or self.script.reached(number) is not None

        wait_until(there, f"{self.script.faults[number]} happened", timeout_s)
        mark = self.script.reached(number)
        assert mark, over
        return mark.host, mark.pid

    def attempts(self) -> list[Attempt]:
        """Return what every worker has trained."""
        return [attempt for own in read_attempts(self.recordings).values() for attempt in own]

    def end(self, timeout_s: float = PATIENCE_S) -> Row:
        """Wait until the run is over; return the row that says how it ended."""
        wait_until(lambda: self.rows("result", "error"), f"run {self.folder} ended", timeout_s)
        return self.rows("result", "error")[0]

    def done(self, timeout_s: float = PATIENCE_S) -> Run:
        """Wait until the run is over, and was trained to its end."""
        end = self.end(timeout_s)
        assert (end.get("status"), end.get("steps")) == ("done", LAST_STEP), end
        return self


@dataclass
class RayCluster:
    """A head that trains nothing, and hosts with 2 CPUs; all that is shared lies below `place`."""

    lab: Lab
    place: Path
    num_runs: int = 0
    cut_off: list[Host] = field(default_factory=list)

    @property
    def head(self) -> Host:
        """The host of the driver."""
        return self.lab.hosts[0]

    @property
    def workers(self) -> list[Host]:
        """The hosts that train."""
        return self.lab.hosts[1:]

    def host(self, name: str) -> Host:
        """Return a host by its name."""
        return next(host for host in self.lab.hosts if host.name == name)

    def start(self) -> None:
        """Write data, start Ray everywhere, and the driver on the head."""
        write_tiny(self.place / "data")
        start_ray(self.head, self.head, cpus=0, env=FAST_HEALTH)
        (self.place / "orders").mkdir()
        driver = Path(__file__).with_name("run_orders.py")
        settings = {"RAY_ADDRESS": f"{self.head.ip}:6379", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
        with (self.place / "driver.log").open("w") as log:
            self.head.start(f"exec python -u {driver} {self.place}/orders", log, env=settings)
        self.repair()

    def repair(self) -> None:
        """Bring back the hosts that tests have lost."""

        def put_right(host: Host) -> None:
            if host in self.cut_off:
                host.run("ray stop --force", check=False)
                host.cable(plugged=True)
            if not raylet(host):
                host.run("ray stop --force", check=False)
                start_ray(host, self.head, cpus=HOST_CPUS, env=FAST_HEALTH)

        with ThreadPoolExecutor(len(self.workers)) as pool:
            list(pool.map(put_right, self.workers))
        self.cut_off.clear()
        self._wait_for_cpus(HOST_CPUS * len(self.workers))

    def lose_spares(self) -> None:
        """Have two hosts left, and Ray know it."""
        if self.num_cpus() < 2 * HOST_CPUS:
            self.repair()
        if self.num_cpus() > 2 * HOST_CPUS:
            self.workers[0].run("pkill -KILL -x raylet")
            self._wait_for_cpus(2 * HOST_CPUS)

    def cut(self, host: Host) -> None:
        """Pull the cable of a host, which Ray will give up."""
        host.cable(plugged=False)
        self.cut_off.append(host)

    def num_cpus(self) -> int:
        """Return how many CPUs Ray knows of, once the driver has nothing to do."""
        path = self.place / "orders" / "cpus"
        wait_until(path.exists, "the driver answered")
        return int(path.read_text())

    def _wait_for_cpus(self, number: int) -> None:
        wait_until(lambda: self.num_cpus() == number, f"Ray knew of {number} CPUs")

    def launch(
        self,
        name: str,
        *faults: Fault,
        cores: float = WHOLE_HOST,
        cluster: dict[str, Any] | None = None,
        **train: Any,
    ) -> Run:
        """Have the driver launch a run on two hosts: 8 steps, checkpoints after 3, 6 and 8.

        cluster, train: fields of these sections.
        """
        folder = self.place / name
        folder.mkdir()
        config = tiny_config(
            self.place / "data", folder, "run", epochs=1, log_every_steps=1,
            launch=Launch.model_validate({"cpus_per_worker": cores} | (cluster or {})), **train,
        )  # fmt: skip
        order = self.place / "orders" / f"{self.num_runs}.json"
        self.num_runs += 1
        run = Run(
            config,
            Script(faults, folder / "marks", folder / "run"),
            folder / "recordings",
            order.with_suffix(".rows"),
        )
        entry = {
            "config": config.model_dump(mode="json"),
            "faults": faults,
            "marks": str(run.script.marks),
            "recordings": str(run.recordings),
        }
        order.with_suffix(".partial").write_text(json.dumps(entry))
        order.with_suffix(".partial").rename(order)
        return run
