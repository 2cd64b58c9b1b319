"""Start or join Ray for the trials of a search or the cells of a grid."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capsdist.config import Config
from capsdist.launch import preflight
from capsdist.launch.preflight import Machine
from capsdist.launch.session import prepare_ray, ray_session
from capsdist.launch.signals import StopSignals
from capsdist.runs.locks import Lock
from capsdist.train.metrics import Row
from capsdist.tune.budget import Budget, on_cluster, on_machine
from capsdist.tune.journal import Journal
from capsdist.tune.source import Trials
from capsdist.tune.space import Search

if TYPE_CHECKING:
    from capsdist.tune.search import Plan

__all__ = ["TrialSession", "prepared"]


def prepared(config: Config, search: Search) -> tuple[Machine | None, Budget | None]:
    """Return this machine and what trials get of it, both None where a cluster is joined.

    Raises:
        ConfigError, RunError: `config` cannot be trained here.
    """
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # no thread shall start another after its end
    if not prepare_ray():
        return None, None
    machine = preflight.this_machine()
    budget = on_machine(config, search, machine)
    placement = preflight.place_on_machine(config, machine)
    preflight.check_engine(config, placement)
    preflight.check_network(config, placement.num_workers)
    return machine, budget


@dataclass(frozen=True)
class TrialSession:
    """One Ray, as `prepared` has found, and the journal of the trials that run on it."""

    config: Config
    search: Search
    machine: Machine | None
    budget: Budget | None
    journal: Journal
    lock: Lock
    show: Callable[[Row], None]

    def run(
        self, source: Trials, plan_of: Callable[[Budget], Plan], header_of: Callable[[Budget], Row]
    ) -> bool:
        """Run the trials that are under way and those of `source`; False if a signal ended them.

        Raises:
            ConfigError, RunError: Ray cannot start, or as `capsdist.tune.search.run_trials`.
        """

        def log(text: str) -> None:
            self.show({"kind": "status", "message": text})

        if self.machine is not None:
            log(f"starting Ray on {self.machine.cores} cores")
        with StopSignals() as signals, contextlib.ExitStack() as stack:
            with signals.starting():
                resources = stack.enter_context(
                    ray_session(self.config, self.machine, dashboard=True, log=log)
                )
            budget = self.budget or on_cluster(self.config, self.search, resources)
            from capsdist.tune.search import run_trials  # late: it imports Ray Tune

            self.show(header_of(budget))
            return run_trials(plan_of(budget), self.journal, source, self.show, self.lock)
