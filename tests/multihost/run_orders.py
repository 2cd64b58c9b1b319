"""The driver on the head: launches one run after another in one process, as a notebook would.

Command: run_orders.py ORDERS, a folder on shared storage: every `N.json` in it, N from 0, is launched in its
turn, its rows go to `N.rows`. One process for all spares the seconds that torch and Ray take to import. In
between it writes to `cpus` how many the cluster has, as Ray knows it. Without RAY_ADDRESS it joins no
cluster, and every run starts a Ray of its own.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from capsdist.config import Config
from capsdist.errors import CapsdistError
from capsdist.launch import launch
from capsdist.launch.session import names_cluster, prepare_ray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.lineage import Recorder
from faults.script import Fault, Script, send_by_value


def carry_out(order: Path) -> None:
    """Launch the run of one order; the last row, of kind "result" or "error", says how it ended."""
    entry = json.loads(order.read_text())
    with order.with_suffix(".rows").open("w", buffering=1) as file:

        def show(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")

        try:
            config = Config.model_validate(entry["config"])
            faults = [Fault(*fault) for fault in entry["faults"]]
            script = Script(faults, Path(entry["marks"]), Path(config.train.storage, config.train.name))
            recorder = Recorder(Path(entry["recordings"]))
            summary = launch(config, display=show, fault=script, observer=recorder)
            show({"kind": "result", **vars(summary)})
        except CapsdistError as error:
            show({"kind": "error", "type": type(error).__name__, "message": str(error)})


def main() -> None:
    """Join the cluster, if there is one, and carry out orders for ever: the driver ends with its host."""
    prepare_ray()
    import ray

    if names_cluster():
        ray.init(log_to_driver=False)
    send_by_value()
    orders, number = Path(sys.argv[1]), 0
    while True:
        if (order := orders / f"{number}.json").exists():
            (orders / "cpus").unlink(missing_ok=True)
            carry_out(order)
            number += 1
        cpus = ray.cluster_resources().get("CPU", 0) if ray.is_initialized() else 0
        (orders / "cpus.partial").write_text(f"{cpus:g}")
        (orders / "cpus.partial").rename(orders / "cpus")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
