"""Do a study: train both networks with every seed and part of the images, and experiment with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from capsdist.bench.record import versions
from capsdist.claims.arranged import CROWDING, SCRAMBLED
from capsdist.claims.disturbed import FGSM, NOISE
from capsdist.claims.experiment import BASELINE, CAPSNET, Result
from capsdist.claims.matched import Size
from capsdist.claims.measuring import results_of
from capsdist.claims.plan import Plan
from capsdist.claims.settings import Settings
from capsdist.claims.trained import less_data, viewpoints
from capsdist.claims.transformed import EQUIVARIANCE, TRANSFORMATIONS
from capsdist.config import Config
from capsdist.console import Log
from capsdist.errors import RunError
from capsdist.runs.files import open_files
from capsdist.runs.rundir import run_place
from capsdist.tune.cells import Cell

__all__ = ["ON_DIGITS", "Study", "Train", "run_study"]

ON_DIGITS = (*TRANSFORMATIONS, SCRAMBLED, CROWDING, EQUIVARIANCE, NOISE, FGSM)
"""Experiments with test digits and the networks of the largest part of the training images."""

Train = Callable[[Config, Mapping[str, Config]], dict[str, Cell] | None]
"""Trains the cells of a grid, or goes on with it; None if a signal ended it: `capsdist.tune.grid.run_grid`
with a display, for example."""


@dataclass
class Study:
    """What was done and found: JSON-able but for `results`.

    settings: of the study; note: what a reader must know first, or ""; sizes: cost of both networks, by data
    set and name; runs: every trained network; results: of the experiments; not_run: why others were not done.
    """

    settings: Settings
    note: str = ""
    sizes: dict[str, dict[str, Size]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def sentences(self) -> list[str]:
        """Return what was found, and what was not run: a sentence each."""
        found = [each.sentence for result in self.results for each in result.findings]
        return found + [f"{name}: not run: {reason}." for name, reason in self.not_run.items()]

    @property
    def verdicts(self) -> str:
        """Return how many claims were decided in which way, in one line."""
        found = self._counted
        words = ", ".join(f"{num} {verdict}" for verdict, num in sorted(found.items()))
        return f"{found.total()} claims: {words}; {len(self.not_run)} experiments not run"

    @property
    def _counted(self) -> Counter[str]:
        return Counter(each.verdict for result in self.results for each in result.findings)

    def as_data(self) -> dict[str, Any]:
        """Return settings, versions and every number, as claims.json has them."""
        return {"settings": vars(self.settings), "versions": versions(), **self.figures}

    @property
    def figures(self) -> dict[str, Any]:
        """Return every number."""
        found = self._counted
        return {
            "note": self.note,
            "num_claims": found.total(),
            "num_supported": found["supported"],
            "num_contradicted": found["contradicted"],
            "sizes": {
                data: {network: vars(size) for network, size in both.items()}
                for data, both in self.sizes.items()
            },
            "runs": self.runs,
            "experiments": {result.experiment.name: result.as_data() for result in self.results},
            "not_run": self.not_run,
        }


def run_study(plan: Plan, train: Train, log: Log, *, note: str = "") -> Study | None:
    """Train what is missing as one grid, measure what is not kept, and return the study; None after a signal.

    note: what a reader must know first.

    Raises:
        DataError: the digits are not packed.
        RunError: a run has failed; the others are trained. CapsdistError: what `train` raises.
    """
    for part in plan.parts:
        part.write()
    cells = train(plan.grid, plan.cells)
    if cells is None:
        return None
    failed = [
        f"{each.name} {each.status} {each.reason}" for each in cells.values() if each.error_percent is None
    ]
    if failed:
        many = f"{len(failed)} of {len(cells)} runs have not finished"
        raise RunError(f"{many} ({failed[0].rstrip()}); the same command tries them again")
    settings, folder = plan.settings, open_files(run_place(plan.grid), log)
    results = [_less_data(plan, cells)]
    largest = {cells[run.name].place: run for run in plan.largest}
    results += results_of(ON_DIGITS, largest, ["test"], settings.test_images, folder, log)
    for factor, runs in plan.views.items():
        places = {cells[run.name].place: run for run in runs}
        results += results_of([viewpoints(factor)], places, ["validation", "test"], None, folder, log)
    return Study(settings, note, plan.sizes, _runs(plan, cells), results, plan.not_run)


def _less_data(plan: Plan, cells: Mapping[str, Cell]) -> Result:
    """Return the errors of all runs on the whole test split of digits, which ended each run."""
    fractions, seeds = plan.settings.fractions, plan.settings.seeds
    found = {(run.network, run.seed, run.fraction): cells[run.name].error_percent for run in plan.digits}
    measured: dict[str, list[Any]] = {
        network: [{"error_percent": [found[network, seed, each] for each in fractions]} for seed in seeds]
        for network in (CAPSNET, BASELINE)
    }
    return Result.of(less_data(fractions), measured)


def _runs(plan: Plan, cells: Mapping[str, Cell]) -> list[dict[str, Any]]:
    """Return what is told of every run."""
    return [
        {
            "name": run.name,
            "network": run.network,
            "seed": run.seed,
            "fraction_percent": run.fraction,
            "train_split": run.config.data.train_split,
            "steps": cells[run.name].step,
            "error_percent": cells[run.name].error_percent,
            "error_interval_percent": cells[run.name].error_interval_percent,
        }
        for run in plan.runs
    ]
