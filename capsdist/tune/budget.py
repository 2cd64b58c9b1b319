"""Choose how many trials run at a time, and what each of their workers gets. Imports no Ray.

Workers x concurrency never exceeds the cores (or GPUs), and what drives a trial takes none of them, so
that every trial that has begun can get its workers: trials cannot wait for each other for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from capsdist.config import Config
from capsdist.errors import ConfigError, Problem
from capsdist.launch.preflight import Machine, place_on_cluster, place_on_machine
from capsdist.tune.space import Search

__all__ = ["Budget", "on_cluster", "on_machine"]


@dataclass(frozen=True)
class Budget:
    """Trials at a time; workers of each, their device and cores."""

    concurrency: int
    num_workers: int
    device: Literal["cpu", "gpu"]
    cores: float

    def lay(self, config: Config) -> Config:
        """Return `config` for one of the trials."""
        train = config.train.model_copy(update={"num_workers": self.num_workers, "device": self.device})
        launch = config.launch.model_copy(update={"cpus_per_worker": self.cores})
        return config.model_copy(update={"train": train, "launch": launch})

    def __str__(self) -> str:
        """Return it in words."""
        workers = "1 worker" if self.num_workers == 1 else f"{self.num_workers} workers"
        gpu = " and 1 GPU" if self.device == "gpu" else ""
        return f"{self.concurrency} at a time, {workers} each with {self.cores:g} CPU{gpu}"


def on_machine(config: Config, search: Search, machine: Machine) -> Budget:
    """Return what trials get of a local Ray on `machine`.

    Raises:
        ConfigError: one trial alone, or `search.concurrency` of them, need more than there is.
    """
    placement = place_on_machine(config, machine)
    asked = config.launch.cpus_per_worker
    cores = asked or 1.0
    slots = int(machine.cores // (placement.num_workers * cores))
    if placement.device == "gpu":
        slots = min(slots, machine.gpus // placement.num_workers)
    there = f"{machine.gpus} GPUs" if placement.device == "gpu" else f"{machine.cores} cores"
    budget = _budget(search, slots, Budget(1, placement.num_workers, placement.device, cores), there)
    shared = machine.cores // (budget.num_workers * budget.concurrency)
    return budget if asked else replace(budget, cores=max(1, shared))


def on_cluster(config: Config, search: Search, resources: Mapping[str, float]) -> Budget:
    """Return what trials get of a cluster with `resources` now, or with `launch.max_workers` when grown.

    Raises:
        ConfigError: `search.concurrency` trials need more than that.
    """
    placement = place_on_cluster(config, resources)
    if (most := config.launch.max_workers) is None:
        most = resources.get("CPU", 0) // placement.cores
        if placement.device == "gpu":
            most = min(most, resources.get("GPU", 0))
    there = f"{int(most)} workers; --launch.max-workers says to how many it can grow"
    budget = Budget(1, placement.num_workers, placement.device, placement.cores)
    return _budget(search, max(1, int(most) // placement.num_workers), budget, there)


def _budget(search: Search, slots: int, one: Budget, there: str) -> Budget:
    if search.concurrency is None:
        return replace(one, concurrency=slots)
    if search.concurrency > slots:
        rule = f"x {one.num_workers} workers with {one.cores:g} CPU each need more than there is: {there}"
        problem = Problem("search.concurrency", search.concurrency, rule, f"set --search.concurrency {slots}")
        raise ConfigError([problem])
    return replace(one, concurrency=search.concurrency)
